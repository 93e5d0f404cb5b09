"""The model as its user calls it: images are their own whatever the batch, and what is requested is checked."""

import functools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.diffusion import EDM, SAMPLERS, Eps, Flow, Schedule
from ldm.images import Preprocess
from ldm.model.generate import ImageNoise, sample_prior
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Identity

PROMPTS = [
    "a cat",
    "a dog above a very small rocket",
    "",
    "a fish",
    "猫",
    "a dog",
    "a cat",
    "a cat on a blue background",
]


def randomised(module):
    """No output is zero any more."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@functools.cache
def made_before(*parts) -> LatentDiffusion:
    return make(parts)


def make(parts=("text", "label"), parameterization=None, bits: int = 8, first_stage=None) -> LatentDiffusion:
    torch.manual_seed(0)
    made = {
        "text": ldm.Text(tokenizer.train(PROMPTS, 280), length=40, dim=8, depth=1, heads=2),
        "label": ldm.ClassLabel(10, list("abcdefghij"), dim=8),
    }
    conditioner = ldm.Conditioner({name: made[name] for name in parts})
    vae = first_stage or ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1])
    network = ldm.UNet(
        vae.latent_channels,
        channels=[8, 16],
        heads=2,
        context_dim=conditioner.token_dim,
        vector_dim=conditioner.vector_dim,
    )
    model = LatentDiffusion(
        vae,
        ldm.Denoiser(network, parameterization or Flow()),
        conditioner,
        Preprocess(channels=vae.in_channels, height=12, width=8, bits=bits),
        {"steps": 3},
    )
    randomised(model)
    model.latent_mean.copy_(torch.linspace(-1, 1, vae.latent_channels))
    model.latent_std.copy_(torch.linspace(0.5, 2, vae.latent_channels))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return make()


def generate(model, *args, **options) -> torch.Tensor:
    return model(*args, output="pt", **options)


# An image is its own ------------------------------------------------------------------------------------------------

STOCHASTIC = {"ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_eight_at_once_are_eight_alone(model, sampler):
    # Guided within the interval alone, so both kinds of step occur.
    options = {"sampler": sampler, "guidance": 3.0, "interval": (0.2, 5.0), "rescale": 0.7}
    options |= {"eta": 0.7} if sampler == "ddim" else {}
    together = generate(model, PROMPTS, labels=list(range(8)), seed=5, **options)
    alone = [generate(model, p, labels=i, seed=5 + i, **options) for i, p in enumerate(PROMPTS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert (together[0] - together[6]).abs().max() > 1e-2  # the same prompt, another image


@pytest.mark.parametrize("parameterization", [Eps(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_the_size_of_a_batch_changes_nothing(parameterization):
    model = make(["label"], parameterization)
    options = {"labels": list(range(8)), "sampler": "ddpm", "guidance": 2.0}
    whole = generate(model, **options)
    torch.testing.assert_close(generate(model, batch_size=3, **options), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_call_gives_the_same_image_whatever_came_before(model, sampler):
    torch.manual_seed(1)
    first = generate(model, "a cat", sampler=sampler)
    state = torch.get_rng_state()
    torch.randn(3)
    assert torch.equal(generate(model, "a cat", sampler=sampler), first)
    torch.set_rng_state(state)
    generate(model, "a cat", sampler=sampler)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator isn't touched


@pytest.mark.parametrize("sampler", sorted(STOCHASTIC))
def test_stochastic_samplers_draw_new_noise_at_every_step(model, sampler):
    noise = ImageNoise([0], (2, 6, 4), torch.device("cpu"))
    assert not torch.equal(noise(), noise())
    assert (generate(model, "a cat", sampler=sampler) - generate(model, "a cat", sampler="euler")).abs().max() > 1e-3


def test_seeds_count_up_or_are_listed(model):
    counted = generate(model, ["a cat", "a dog"], n=2, seed=7)
    assert torch.equal(generate(model, ["a cat", "a dog"], n=2, seed=[7, 8, 9, 10]), counted)
    same = generate(model, "a cat", n=3, seed=[4, 4, 4])
    torch.testing.assert_close(same[1:], same[:1].expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(generate(model, "a cat", seed=torch.tensor([7])), generate(model, "a cat", seed=7))
    with pytest.raises(UserError, match="2 seeds for 3 images"):
        model("a cat", n=3, seed=[1, 2])
    for wrong in (1.5, "7", [1, 2.5, 3], torch.tensor(0.5)):
        with pytest.raises(UserError, match="give a whole number"):
            model("a cat", n=3, seed=wrong)


@pytest.mark.parametrize("options", [{"seed": np.int64(7)}, {"seed": 7, "labels": np.int64(3)}], ids=["seed", "label"])
def test_numbers_of_numpy_are_numbers(model, options):
    wanted = {name: int(value) for name, value in options.items()}
    assert torch.equal(generate(model, **options), generate(model, **wanted))


def test_n_is_per_condition_and_conditions_keep_their_order(model):
    images = generate(model, ["a cat", "a dog"], n=2, seed=[3, 4, 3, 4])
    assert len(images) == 4
    for row, prompt, seed in ((0, "a cat", 3), (1, "a cat", 4), (2, "a dog", 3)):
        torch.testing.assert_close(images[row : row + 1], generate(model, prompt, seed=seed), atol=1e-4, rtol=0)
    assert len(model(labels=[3, 7], n=3)) == 6
    assert len(model(n=2)) == 2


# What is requested ---------------------------------------------------------------------------------------------------


def test_conditions_change_the_image_and_are_names_or_numbers(model):
    first = generate(model, labels=["c"])
    assert torch.equal(generate(model, labels=[2]), first)
    assert torch.equal(generate(model, labels="c"), first)
    assert torch.equal(generate(model, labels=torch.tensor([2])), first)
    assert (generate(model, labels=["d"]) - first).abs().max() > 1e-3
    assert (generate(model, "a cat", labels=["c"]) - first).abs().max() > 1e-3


def test_a_model_shows_its_classes(model):
    assert model.labels["c"] == 2 and list(model.labels.values()) == list(range(len(model.labels)))
    assert "2 = c" in repr(model)


def test_guidance_one_is_the_conditional_and_zero_the_unconditional(model):
    plain = generate(model, "a cat", guidance=1.0)
    assert torch.equal(generate(model, "a cat"), plain)
    torch.testing.assert_close(generate(model, "a cat", guidance=0.0), generate(model), atol=1e-5, rtol=0)
    assert (generate(model, "a cat", guidance=4.0) - plain).abs().max() > 1e-3


def test_a_guided_step_costs_two_evaluations_and_a_plain_one_one(model, monkeypatch):
    rows = []
    forward = model.denoiser.network.forward
    monkeypatch.setattr(model.denoiser.network, "forward", lambda x, *a: (rows.append(len(x)), forward(x, *a))[1])
    generate(model, "a cat", n=2, steps=4)
    assert rows == [2] * 4
    rows.clear()
    generate(model, "a cat", n=2, steps=4, guidance=3.0)
    assert sum(rows) == 2 * 4 * 2


def test_a_negative_prompt_takes_the_place_of_the_null_condition(model):
    guided = {"guidance": 3.0, "seed": 2}
    plain = generate(model, "a cat", **guided)
    assert torch.equal(generate(model, "a cat", negative="", **guided), plain)
    negative = generate(model, "a cat", negative="a dog", **guided)
    assert (negative - plain).abs().max() > 1e-3
    torch.testing.assert_close(
        generate(model, "a cat", negative="a cat", **guided), generate(model, "a cat", seed=2), atol=1e-4, rtol=0
    )
    pair = generate(model, "a cat", n=2, negative=["", "a dog"], guidance=3.0, seed=[2, 2])
    torch.testing.assert_close(pair, torch.cat([plain, negative]), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="2 negative prompts for 3 images"):
        model("a cat", n=3, negative=["a", "b"])


@pytest.mark.parametrize(
    ("parts", "call", "message"),
    [
        (["text"], {"labels": [1]}, "can't take label; it was trained with text"),
        (["label"], {"prompt": "a cat"}, "can't take text; it was trained with label"),
        (["label"], {"labels": [1], "negative": "x"}, "can't take text; it was trained with label"),
        (["label"], {"labels": ["z"]}, "no class is called 'z'.*a, b, c"),
        (["label"], {"labels": [11]}, "knows 0 to 9"),
        ([], {"prompt": "a cat"}, "no condition at all"),
        (["text", "label"], {"prompt": ["a", "b"], "labels": [1]}, "differ in number"),
        (["text"], {"prompt": []}, "nothing to generate"),
        (["text"], {"prompt": "a", "n": 0}, "nothing to generate"),
        (["text"], {"prompt": "a", "sampler": "eulr"}, "no sampler 'eulr'. Did you mean 'euler'"),
        (["text"], {"prompt": "a", "sampler": "euler", "eta": 1.0}, "euler has no option 'eta'"),
        (["text"], {"prompt": "a", "steps": 0}, "at least one step"),
        (["text"], {"prompt": "a", "spacing": "leading"}, "Flow has no spacing 'leading'"),
        (["text"], {"prompt": "a", "size": 9}, "9x9 isn't divisible"),
        (["text"], {"prompt": "a", "output": "jpeg"}, "output='jpeg' isn't one of pil, pt, np"),
    ],
)
def test_what_cannot_be_generated_is_refused(parts, call, message):
    with pytest.raises(UserError, match=message):
        made_before(*parts)(**call)


def test_outputs(model):
    pixels = generate(model, "a cat", n=2)
    assert pixels.shape == (2, 1, 12, 8) and pixels.abs().max() <= 1 and pixels.dtype == torch.float32
    array = model("a cat", n=2, output="np")
    assert array.shape == (2, 12, 8, 1) and array.dtype == np.uint8
    assert np.abs(array[..., 0] / 127.5 - 1 - pixels[:, 0].numpy()).max() <= 1 / 255 + 1e-6
    results = model("a cat", n=2)
    assert [p.size for p in results] == [(8, 12)] * 2
    assert np.array_equal(np.asarray(results[1]), array[1, :, :, 0])
    assert make(["label"], bits=16)(labels=[1], output="np").dtype == np.uint16


def test_other_sizes_odd_latents_too(model):
    assert generate(model, "a cat", size=(14, 6)).shape == (1, 1, 14, 6)
    assert generate(model, "a cat", size=10).shape == (1, 1, 10, 10)


def test_each_step_is_shown(model):
    seen = []
    generate(model, "a cat", n=2, steps=4, on_step=lambda i, n, x: seen.append((i, n, tuple(x.shape))))
    assert seen == [(i, 4, (2, 2, 6, 4)) for i in range(4)]


def test_unconditional_models_generate_too():
    model = make([])
    images = generate(model, n=3, guidance=2.0)
    assert len(images) == 3
    torch.testing.assert_close(images, generate(model, n=3), atol=1e-5, rtol=0)  # nothing to be guided by


def ddpm_model() -> LatentDiffusion:
    model = make(["label"], Eps(Schedule(timesteps=20, kind="cosine")))
    model.sampling |= {"sampler": "ddpm", "steps": 20, "spacing": "table", "clip": 1.0}
    return model


def test_fewer_steps_leave_the_whole_table():
    model = ddpm_model()
    assert generate(model, labels=[1]).isfinite().all()
    few = generate(model, labels=[1], steps=5)  # spacing "table" can't have 5 steps; it isn't the user's choice
    assert torch.equal(few, generate(model, labels=[1], steps=5, spacing="uniform"))


def test_another_sampler_leaves_the_options_of_the_models_own():
    assert generate(ddpm_model(), labels=[1], sampler="ddim", steps=5).isfinite().all()


# Latents -------------------------------------------------------------------------------------------------------------


def test_latents_are_whitened_by_channel_on_the_way_in_and_back_on_the_way_out(model):
    images = torch.rand(2, 1, 12, 8) * 2 - 1
    raw = model.first_stage.encode(images).mode()
    wanted = torch.stack([(raw[:, i] - model.latent_mean[i]) / model.latent_std[i] for i in range(2)], 1)
    torch.testing.assert_close(model.encode(images), wanted)
    torch.testing.assert_close(model.decode(wanted), model.first_stage.decode(raw).clamp(-1, 1), atol=1e-5, rtol=0)


def test_pixels_need_no_first_stage():
    model = make(["label"], first_stage=Identity(3))
    assert generate(model, labels=[1, 2]).shape == (2, 3, 12, 8)


def test_samples_of_the_prior_are_their_own_too():
    torch.manual_seed(0)
    vae = randomised(ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1])).eval()
    images = sample_prior(vae, 5, (8, 12), seed=3, batch_size=2)
    assert images.shape == (5, 1, 8, 12)
    torch.testing.assert_close(images[4:], sample_prior(vae, 1, (8, 12), seed=7), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="isn't divisible"):
        sample_prior(vae, 1, (7, 8))


def test_keys_and_values_of_a_prompt_are_computed_once_a_run(monkeypatch):
    model = make(("text",))
    calls = []
    layers = {n: m for n, m in model.denoiser.named_modules() if n.endswith("attn2.to_k")}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    requested = {"prompt": PROMPTS[:3], "seed": 1, "steps": 4, "guidance": 3.0, "output": "pt"}
    once = model(**requested)
    assert sorted(calls) == sorted(layers)
    monkeypatch.setattr("ldm.model.generate.constant_contexts", nullcontext)
    torch.testing.assert_close(model(**requested), once, rtol=0, atol=1e-6)
    assert len(calls) == 5 * len(layers)


# What is given is of its kind ----------------------------------------------------------------------------------------

WRONG = [
    {"strength": "0.5", "image": np.zeros((12, 8), np.uint8)},
    {"steps": "3"},
    {"steps": 1.5},
    {"steps": True},
    {"n": 2.5},
    {"n": "2"},
    {"guidance": "3"},
    {"guidance": float("nan")},
    {"guidance": {"text": "3"}},
    {"seed": True},
    {"seed": 1.5},
    {"seed": [1, True]},
    {"batch_size": 2.0},
    {"size": "12"},
    {"size": 12.0},
    {"eta": "1", "sampler": "ddim"},
    {"rescale": float("inf")},
    {"guidance": -1e299},
    {"guidance": 1e37},
    {"guidance": {"text": 20_000}},
    {"autoguidance": float("inf")},
    {"output": "jpg"},
    {"guess_mode": "no"},
]


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_an_argument_of_another_kind_gets_a_sentence_before_anything_is_generated(given, model):
    def never(*_):
        raise AssertionError("work started")

    name = next(iter(given))
    with pytest.raises(UserError, match=f"^{name}="):
        model("a cat", on_step=never, **given)


@pytest.mark.parametrize("given", [{"shift": 1e299}, {"strength": 10**400}, {"interval": (0, 1e39)}], ids=str)
def test_a_number_that_float32_does_not_hold_is_refused(given, model):
    with pytest.raises(UserError, match=f"^{next(iter(given))}= is beyond the range of float32: .* at most 3.4e\\+38"):
        model("a cat", **given)


def test_earlier_names_of_methods_keep_working(model):
    given = {"text": ["a cat"]}
    assert torch.equal(model.draw(given, 1, start=None, steps=1), model.generate_for(given, 1, steps=1))
    assert model.steering(given, control=None, begin=None, made_from=None) is None
    assert model.check_pictures(image=None) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_no_numbers_are_refused(model, monkeypatch, value):
    monkeypatch.setattr(type(model.coding), "decode", lambda *given: torch.full((len(given[-1]), 1, 12, 8), value))
    with pytest.raises(UserError, match="infinite values or NaN"):
        model("a cat", steps=1)
    with pytest.raises(UserError, match="infinite values or NaN"):
        model.generate_for({"text": ["a cat"]}, steps=1)
    with pytest.raises(UserError, match="infinite values or NaN"):
        model.interpolate("a cat", "a dog", n=2, steps=1)


@pytest.mark.parametrize(
    "given", [{"n": 2.5}, {"n": True}, {"seed": "1"}, {"strength": "0.5"}, {"steps": 1.5}], ids=str
)
def test_interpolations_hold_their_arguments_too(given, model):
    with pytest.raises(UserError, match=f"^{next(iter(given))}="):
        model.interpolate("a cat", "a dog", **given)


def test_numbers_of_numpy_and_torch_are_numbers(model):
    plain = generate(model, "a cat", n=2, steps=2, guidance=2.0, seed=5)
    given = {"n": np.int64(2), "steps": np.int32(2), "guidance": np.float32(2.0), "seed": torch.tensor([5, 6])}
    assert torch.equal(generate(model, "a cat", **given), plain)
    assert torch.equal(generate(model, labels=3, steps=1), generate(model, labels=[3], steps=1))
