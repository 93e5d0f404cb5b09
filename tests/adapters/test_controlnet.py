"""ControlNets on a model: no effect without a control image, the given one with it; files, bases, and what is
refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.adapters import Control
from ldm.adapters.controlnet import ControlImages
from ldm.artifact import model_hash
from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner
from ldm.diffusion import Denoiser, Eps, Terms, classifier_free
from ldm.images import Preprocess
from ldm.images.hints import Canny, MapHint
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond, Controlled, ControlNet


def noisy(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def make(seed=0, labels=True):
    torch.manual_seed(seed)
    conditioner = Conditioner({"label": ClassLabel(4, dim=6)} if labels else {})
    vae = ldm.AutoencoderKL(3, 4, channels=8, multipliers=[1, 2])
    network = ldm.UNet(
        4, channels=[8, 16], heads=2, groups=4, context_dim=conditioner.token_dim, vector_dim=conditioner.vector_dim
    )
    model = LatentDiffusion(vae, Denoiser(network, Eps()), conditioner, Preprocess(3, 16, 16), {"steps": 3})
    return noisy(model).eval()


def control(model, hint=None, trained=True, seed=1, path="."):
    hint = hint or Canny()
    net = ControlNet(model.denoiser.network, hint.channels, 2)
    base = {"hash": model_hash(model), "path": path}
    return Control(noisy(net, seed) if trained else net, hint, base).eval().requires_grad_(False)


HINT = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))


def generate(model, **options):
    return model(**{"labels": [1, 2], "output": "pt", "guidance": 2.0} | options)


def steered(*, trained=True, name="a"):
    base = make()
    model = make()
    model.put_on(control(base, trained=trained), name)
    return model


def test_without_a_control_image_the_model_is_its_base():
    model = steered()
    assert isinstance(model.denoiser.network, Controlled)
    assert torch.equal(generate(model), generate(make()))
    assert (generate(model, control=HINT) - generate(make())).abs().max() > 1e-2


def test_before_training_a_control_image_changes_no_bit():
    assert torch.equal(generate(steered(trained=False), control=HINT), generate(make()))


def test_scale_start_and_end():
    model, whole = steered(), generate(make())
    full = generate(model, control=HINT)
    assert torch.equal(generate(model, control=HINT, control_scale=0.0), whole)
    assert torch.equal(generate(model, control=HINT, control_scale=1.0, control_start=0.0, control_end=1.0), full)
    late, early = (generate(model, control=HINT, **{key: 0.5}) for key in ("control_start", "control_end"))
    for one, two in ((late, early), (late, full), (early, full), (late, whole), (early, whole)):
        assert not torch.equal(one, two)
    assert torch.equal(generate(model, control=HINT, control_start=0.9), whole)  # no step lies within


def test_options_given_at_loading_hold_until_others_are_given(tmp_path):
    base = make()
    ldm.save(control(base), tmp_path / "edges" / "model")
    model, plain = make(), steered()
    model.load_controlnet(tmp_path / "edges", 0.3, start=0.5)
    assert list(model.adapters) == ["edges"]
    assert torch.equal(
        generate(model, control=HINT), generate(plain, control=HINT, control_scale=0.3, control_start=0.5)
    )
    assert torch.equal(generate(model, control=HINT, control_scale=1, control_start=0), generate(plain, control=HINT))


@pytest.mark.parametrize("n", [1, 3, 10, 20])
@pytest.mark.parametrize("span", [(0.0, 0.3), (0.3, 1.0), (0.25, 0.7), (0.5, 0.55)])
def test_a_span_holds_the_steps_that_diffusers_means(n, span):
    sigmas, seen = Eps().grid(n), []
    images = ControlImages({"a": HINT[None]}, {"a": 1.0}, {"a": span})
    network = Controlled(make().denoiser.network)
    network.add("a", control(make()).network)

    class Denoise:
        def __init__(self):
            self.network = network

        def __call__(self, x, sigma, cond):
            seen.append("a" in cond.control and "a" in cond.control_weights)

    denoise, terms = images.put_on(Denoise(), Terms(Cond()), sigmas, 1.0)
    for sigma in sigmas[:-1]:
        denoise(torch.zeros(1, 1, 1, 1), sigma.float()[None], terms.full)
    assert seen == [not (i / n < span[0] or (i + 1) / n > span[1]) for i in range(n)]


@torch.no_grad()
def test_guess_mode_controls_the_conditional_alone_and_the_finer_less():
    model = steered()
    images = replace(model.control_images({}, control=HINT, guess=True), images={"a": HINT[None]})
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor([3.0])
    null = Cond(vector=torch.zeros(1, 6), tokens=torch.zeros(1, 1, 6))
    full = Cond(torch.ones(1, 6), torch.ones(1, 1, 6))
    terms = classifier_free(full, null, 3.0)
    denoise, terms = images.put_on(model.denoiser, terms, Eps().grid(3), 3.0)
    ((unconditional, weight),) = terms.others
    assert weight == -2.0
    plain = make().denoiser
    torch.testing.assert_close(denoise(x, sigma, unconditional), plain(x, sigma, null))
    n = model.denoiser.network.controlnets[0].outputs
    torch.testing.assert_close(terms.full.control_weights["a"][0], 10 ** (torch.linspace(-1, 0, n)))
    joined = denoise(x.repeat(2, 1, 1, 1), sigma.repeat(2), unconditional.cat(terms.full))
    torch.testing.assert_close(joined[1:], denoise(x, sigma, terms.full))
    # without a prompt, guidance leads from what nothing controls to what is controlled
    _, terms = images.put_on(model.denoiser, Terms(null), Eps().grid(3), 3.0)
    ((uncontrolled, weight),) = terms.others
    assert weight == -2.0 and not uncontrolled.control_weights["a"].any()
    assert not torch.equal(generate(model, control=HINT, guess_mode=True), generate(model, control=HINT))


def test_several_controlnets_add_up_whatever_the_batch():
    model = steered()
    model.put_on(control(make(), seed=5), "b")
    other = torch.rand(3, 16, 16)
    with pytest.raises(UserError, match="several ControlNets.*a, b"):
        generate(model, control=HINT)
    both = generate(model, control={"a": HINT, "b": other})
    assert torch.equal(generate(model, control={"a": HINT}), generate(steered(), control=HINT))
    assert not torch.equal(both, generate(model, control={"a": HINT}))
    scaled = generate(model, control={"a": HINT, "b": other}, control_scale={"b": 0.0})
    assert torch.equal(scaled, generate(model, control={"a": HINT}))
    torch.testing.assert_close(generate(model, control={"a": HINT, "b": other}, batch_size=1), both, atol=1e-4, rtol=0)


def test_one_control_image_for_all_or_one_each():
    model = steered()
    two = torch.stack([HINT, 1 - HINT])
    each = generate(model, control=two, n=2)
    torch.testing.assert_close(each[:2], generate(model, labels=[1], control=HINT, n=2), atol=1e-4, rtol=0)
    torch.testing.assert_close(each[2:], generate(model, labels=[2], control=1 - HINT, n=2, seed=2), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="3 control images"):
        generate(model, control=torch.stack([HINT] * 3))


def test_control_images_may_be_given_or_made_from_images():
    model = steered()
    shown_image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    made = Canny()(model.preprocess.to_tensor(shown_image.transpose(2, 0, 1))[None])[0]
    edges = (made * 255).byte().movedim(0, 2).numpy()
    assert torch.equal(generate(model, control=edges), generate(model, control=made))
    assert torch.equal(generate(model, control_from=shown_image), generate(model, control=made))
    larger = generate(model, control=edges, size=(32, 24))
    assert larger.shape[2:] == (32, 24)


def test_a_control_image_lies_over_the_image_and_the_other_control_images():
    model = steered()
    wide, tall = np.zeros((16, 32, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)
    for option in ("control", "control_from"):
        with pytest.raises(UserError, match="the image is 16x32, the .*32x16 .height x width"):
            generate(model, image=wide, **{option: tall})
        assert generate(model, image=wide, steps=1, **{option: wide[::2, ::2]}).isfinite().all()
    with pytest.raises(UserError, match="the padded image is 16x32, the control image 16x16"):
        generate(model, image=np.zeros((16, 16, 3), np.uint8), pad=[8, 0, 8, 0], control=tall[:16])
    model.put_on(control(make(), seed=2), "b")
    with pytest.raises(UserError, match="the control image 'a' is 16x32, the control image 'b' 32x16"):
        generate(model, control={"a": wide, "b": tall})


def test_a_control_image_is_turned_as_its_exif_says():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    shown_image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    shown_image.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    model, lying = steered(), Image.open(file)
    for option in ("control", "control_from"):
        assert torch.equal(generate(model, **{option: lying}), generate(model, **{option: shown_image}))


def test_an_adapters_folder_brings_its_base_and_refuses_another(tmp_path):
    ldm.save(make(), tmp_path / "base")
    ldm.save(control(make(), path="../base"), tmp_path / "edges")
    names = (tmp_path / "edges" / "model.safetensors").read_bytes()
    assert b"up_blocks" not in names and b"first_stage" not in names
    model = ldm.load(tmp_path / "edges")
    assert isinstance(model, LatentDiffusion)
    assert torch.equal(generate(model, control=HINT), generate(steered(), control=HINT))
    other = make(seed=7)
    with pytest.raises(UserError, match="another base"):
        other.load_controlnet(tmp_path / "edges")
    other.load_controlnet(tmp_path / "edges", force=True)
    assert generate(other, control=HINT).isfinite().all()
    with pytest.raises(UserError, match="holds a whole LatentDiffusion, not an adapter"):
        make().load_controlnet(tmp_path / "base")


def test_a_controlnet_of_diffusers_is_put_on(tmp_path):
    from ldm.interop.export import export

    model = make(labels=False)
    unet = ldm.UNet(4, channels=[8, 16], heads=2, groups=4, context_dim=5)
    net = noisy(ControlNet(unet, factor=2))
    export(net, tmp_path / "canny")
    with pytest.raises(UserError, match="context_dim"):
        model.load_controlnet(tmp_path / "canny")
    model.denoiser.network = noisy(unet).eval()
    model.load_controlnet(tmp_path / "canny")
    assert list(model.adapters) == ["canny"]
    shape = net.state_dict()["controlnet_mid_block.weight"].shape
    assert model.denoiser.network.controlnets[0].controlnet_mid_block.weight.shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": {"b": HINT}}, "no ControlNet 'b'"),
        ({"control": HINT[:1]}, r"takes \(3, 16, 16\)"),
        ({"control": HINT, "control_from": HINT}, "not both"),
        ({"control": HINT, "control_start": 0.6, "control_end": 0.5}, "start=0.6, end=0.5"),
        ({"control_scale": 0.5}, "need a control image"),
        ({"control": HINT / 0}, "infinite values or NaN"),
        ({"control_from": HINT * torch.nan}, "infinite values or NaN"),
        ({"guess_mode": True}, "need a control image"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        generate(steered(), **options)


def test_what_doesnt_fit_or_isnt_there_is_named():
    with pytest.raises(UserError, match="has no ControlNet"):
        generate(make(), control=HINT)
    wrong = ControlNet(make().denoiser.network, 3, 4)
    with pytest.raises(UserError, match="4 times the features' size, the model's 2"):
        make().put_on(Control(wrong, Canny()), "a")
    mapped = make()
    mapped.put_on(control(make(), MapHint(5)), "a")
    with pytest.raises(UserError, match="made from a map, not from an image"):
        generate(mapped, control_from=HINT)
    ids = np.random.default_rng(0).integers(0, 5, (16, 16)).astype(np.uint8)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(ids).long(), 5).movedim(-1, 0).float()
    assert torch.equal(generate(mapped, control=ids), generate(mapped, control=one_hot))


def test_a_controlnet_whose_weights_arent_finite_is_refused(tmp_path):
    spoilt = control(make())
    spoilt.network.conv_in.weight[0, 0, 0, 0] = float("inf")
    ldm.save(spoilt, tmp_path / "edges")
    with pytest.raises(UserError, match="network.conv_in.weight isn't finite"):
        make().load_controlnet(tmp_path / "edges")
