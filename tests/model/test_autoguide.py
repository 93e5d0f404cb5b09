"""Autoguidance in the pipeline: what it computes, what it costs, and which worse models are refused."""

import copy

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.diffusion import Flow
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion


def make(parts=("label",), seed: int = 0) -> LatentDiffusion:
    torch.manual_seed(seed)
    made = {
        "text": ldm.Text(tokenizer.train(["a cat"], 280), length=8, dim=8, depth=1, heads=2),
        "label": ldm.ClassLabel(3, list("abc"), dim=8),
    }
    conditioner = ldm.Conditioner({name: made[name] for name in parts})
    sizes = {"context_dim": conditioner.token_dim, "vector_dim": conditioner.vector_dim}
    network = ldm.UNet(2, channels=[8, 16], heads=2, **sizes)
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1])
    preprocess = Preprocess(channels=1, height=8, width=8, bits=8)
    model = LatentDiffusion(vae, ldm.Denoiser(network, Flow()), conditioner, preprocess, {"steps": 4, "guidance": 3.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def latents(model, **options) -> torch.Tensor:
    seen = []
    model(labels=["a", "b"], output="pt", on_step=lambda i, n, denoised: seen.append(denoised), **options)
    return torch.stack(seen)


class Count:
    """The images that a model's network has been given."""

    def __init__(self, model):
        self.images = 0
        model.denoiser.network.register_forward_hook(self.add)

    def add(self, module, args, out):
        self.images += len(out)


def test_it_is_led_away_from_the_worse_model():
    good, bad = make(seed=0), make(seed=1)
    one, other = (latents(m, steps=1, guidance=1.0)[0] for m in (good, bad))
    good.load_autoguide(bad)
    torch.testing.assert_close(latents(good, steps=1, autoguidance=2.5)[0], other + 2.5 * (one - other))
    torch.testing.assert_close(latents(good, steps=1)[0], other + 1.5 * (one - other))  # the default
    assert torch.equal(latents(good, steps=1, autoguidance=1.0)[0], one)


def test_it_replaces_guidance_unless_both_are_requested():
    good, bad = make(seed=0), make(seed=1)
    guided, other = latents(good, steps=1)[0], latents(bad, steps=1, guidance=1.0)[0]  # guidance 3, the model's own
    good.load_autoguide(bad)
    both = latents(good, steps=1, guidance=3.0, autoguidance=1.5)[0]
    torch.testing.assert_close(both, other + 1.5 * (guided - other))


def test_what_it_costs_and_an_interval_saves():
    good, bad = make(seed=0), make(seed=1)
    counts = Count(good), Count(bad)
    good.load_autoguide(bad)
    latents(good, autoguidance=2.0)
    assert [c.images for c in counts] == [8, 8]  # two images, four steps
    sigmas = good.denoiser.parameterization.grid(4)
    inside = (sigmas[2].item() - 1e-6, sigmas[1].item())
    latents(good, autoguidance=2.0, interval=inside)
    assert [c.images for c in counts] == [16, 12]
    latents(good, autoguidance=1.0)
    assert [c.images for c in counts] == [24, 12]


def test_the_worse_model_may_know_fewer_conditions_and_stays_out_of_the_weights():
    good, bad = make(("text", "label")), make((), seed=1)
    names = list(good.state_dict())
    good.load_autoguide(bad)
    results = good("a cat", labels=["b"], n=2, autoguidance=2.0, output="pt")
    assert results.shape == (2, 1, 8, 8) and results.isfinite().all()
    assert list(good.state_dict()) == names
    halves = [good("a cat", labels=["b"], seed=s, autoguidance=2.0, output="pt") for s in (0, 1)]
    torch.testing.assert_close(results, torch.cat(halves), rtol=0, atol=1e-5)


def test_what_is_refused():
    good, bad = make(), make(seed=1)
    with pytest.raises(UserError, match="load_autoguide"):
        latents(good, autoguidance=2.0)
    with pytest.raises(UserError, match="a diffusion model: name a run"):
        good.load_autoguide(bad.first_stage)
    bad.latent_std.mul_(2)
    with pytest.raises(UserError, match="other latents"):
        good.load_autoguide(bad)


def test_a_saved_model_is_loaded_by_its_path(tmp_path):
    good, bad = make(), make(seed=1)
    ldm.save(bad, tmp_path / "bad")
    by_object = copy.deepcopy(good)
    by_object.load_autoguide(bad)
    good.load_autoguide(tmp_path / "bad")
    torch.testing.assert_close(latents(good), latents(by_object))


def test_decoding_stays_float32_under_autocast():
    """Decoders overflow in float16; the denoiser may run in half precision."""
    model, seen = make(), []
    model.first_stage.decoder.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    model.denoiser.network.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    plain = model(labels=["a"], steps=1, output="pt")
    with torch.autocast("cpu", torch.bfloat16):
        results = model(labels=["a"], steps=1, output="pt")
        encoded = model.encode(plain)
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert results.dtype == encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, model.encode(plain))


def test_shift_auto_is_by_the_size():
    model = make()
    for size, shift in ((8, 1.0), (16, 2.0)):
        one, other = (model(labels=["a"], size=size, shift=s, output="pt") for s in ("auto", shift))
        assert torch.equal(one, other)
