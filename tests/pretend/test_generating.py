"""Generating on the pretended device equals generating on the CPU, and waits at most three times a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ldm
from ldm.conditioning import Conditioner, Inpaint, LowRes, MapTokens, SemanticMap, Text, tokenizer
from ldm.diffusion import EDM, SAMPLERS, Denoiser, Eps, Flow
from ldm.images import Preprocess
from ldm.networks import AutoencoderKL, DiT, Identity, UNet, controlnet_for
from ldm.pipeline import LatentDiffusion
from tests.pretend.device import DEVICE, moved, pretended

IMAGE = torch.linspace(-1, 1, 3 * 64).view(3, 8, 8)
MASK = (torch.arange(64).view(1, 8, 8) % 3 == 0).float()
MAP = torch.arange(64).view(8, 8) % 3


def text() -> Text:
    return Text(tokenizer.train(["a cat", "a dog"], 280), length=24, dim=8, depth=1, heads=2)


def captions() -> dict[str, Any]:
    return {"text": text()}


def make(
    parts: Callable[[], dict[str, Any]],
    parameterization: Any = None,
    first_stage: Any = None,
    dit: bool = False,
    side: int = 8,
) -> Any:
    """A small random model all of whose weights count."""
    torch.manual_seed(0)
    conditioner = Conditioner(parts())
    stage = first_stage or AutoencoderKL(3, 2, channels=8, multipliers=(1, 2))
    wants = {
        "context_dim": conditioner.token_dim,
        "vector_dim": conditioner.vector_dim,
        "concat_channels": conditioner.concat_channels,
    }
    if dit:
        network: Any = DiT(stage.latent_channels, channels=16, depth=2, heads=2, **wants)
    else:
        network = UNet(stage.latent_channels, channels=8, multipliers=(1,), heads=2, **wants)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    denoiser = Denoiser(network, parameterization or Flow())
    return LatentDiffusion(stage, denoiser, conditioner, Preprocess(3, side, side), {"steps": 4}).eval()


def agrees(
    monkeypatch: Any,
    made: Callable[[], Any],
    call: Callable[[Any], torch.Tensor],
    most: int = 3,
    atol: float = 1e-5,
) -> None:
    wanted = call(made())
    with pretended(monkeypatch) as waits:
        model = moved(made())
        waits.clear()
        got = call(model)
        assert got.device.type == DEVICE
        assert sum(waits.values()) <= most, waits
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("parameterization", [Flow, *(pytest.param(p, marks=pytest.mark.slow) for p in (EDM, Eps))])
def test_every_sampler(monkeypatch, sampler, parameterization):
    agrees(
        monkeypatch,
        lambda: make(captions, parameterization()),
        lambda model: model("a cat", n=2, steps=6, sampler=sampler, guidance=3.0, output="pt"),
    )


FEATURES: dict[str, dict[str, Any]] = {
    "negative": {"negative": "a dog", "guidance": 2.0},
    "interval": {"guidance": 3.0, "interval": (0.3, 5.0)},
    "rescale": {"guidance": 3.0, "rescale": 0.7},
    "image to image": {"image": IMAGE, "strength": 0.6},
    "inpainting": {"image": IMAGE, "mask": MASK, "feather": 1},
    "outpainting": {"image": IMAGE, "pad": 4},
    "size": {"size": (16, 8), "shift": "auto"},
}


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("dit", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["unet", "dit"])
def test_features(monkeypatch, options, dit):
    agrees(
        monkeypatch,
        lambda: make(captions, dit=dit),
        lambda model: model(["a cat", "a dog"], output="pt", batch_size=1, **options),
    )


CONDITIONS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "label": (lambda: {"label": ldm.ClassLabel(3, list("abc"), dim=8)}, {"labels": [0, "c"], "guidance": 2.0}),
    "map": (lambda: {"text": text(), "map": SemanticMap(3, 2, size=[8, 8])}, {"map": MAP, "guidance": {"map": 2.0}}),
    "map tokens": (lambda: {"map": MapTokens(3, size=[8, 8], grid=4, dim=8)}, {"map": MAP, "guidance": 2.0}),
    "trained to fill": (lambda: {"fill": Inpaint(2, 2, size=[8, 8])}, {"image": IMAGE, "mask": MASK}),
}


@pytest.mark.parametrize(("parts", "options"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(monkeypatch, parts, options):
    agrees(monkeypatch, lambda: make(parts), lambda model: model(output="pt", **options))


@pytest.mark.parametrize(("precision", "of"), [("float16", "image"), ("bfloat16", "tile")])
def test_half_precision_and_tiles(monkeypatch, precision, of):
    """Whether anything overflowed in float16 is read once of the encoded and once of the decoded image. The two devices
    attend by other kernels, which round otherwise."""

    def lowered() -> Any:
        model = make(captions)
        model.compute(precision, 16, of)
        return model

    asked = {"image": IMAGE.repeat(1, 2, 3), "mask": MASK.repeat(1, 2, 3), "guidance": 2.0, "steps": 2}
    agrees(monkeypatch, lowered, lambda model: model("a cat", output="pt", **asked), atol=0.05)


def test_super_resolution(monkeypatch):
    def enlarging() -> Any:
        return make(lambda: {"low": LowRes(3, size=[8, 8])}, first_stage=Identity(3))

    agrees(monkeypatch, enlarging, lambda model: model(image=IMAGE[:, ::2, ::2], noise_level=0.1, output="pt"))


def test_control_images(monkeypatch):
    from ldm.adapters.control import Control
    from ldm.images.hints import Canny

    def controlled() -> Any:
        model = make(captions)
        torch.manual_seed(1)
        net = controlnet_for(model.denoiser.network, 3, 2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.put_on(Control(net, Canny()), "edges")
        return model

    span = {"control_start": 0.2, "control_end": 0.8, "control_scale": 0.7}
    edges = (IMAGE > 0).float()
    agrees(monkeypatch, controlled, lambda model: model("a cat", control=edges, guidance=2.0, output="pt", **span))


def test_autoguidance(monkeypatch):
    def led() -> Any:
        model = make(captions)
        model.load_autoguide(make(captions, EDM()))
        return model

    def call(model: Any) -> torch.Tensor:
        if model.latent_mean.device.type == DEVICE:
            moved(model.guide[0])
        return model("a cat", autoguidance=2.0, output="pt")

    assert not torch.equal(call(led()), make(captions)("a cat", output="pt"))
    agrees(monkeypatch, led, call)


def test_interpolation(monkeypatch):
    agrees(monkeypatch, lambda: make(captions), lambda m: m.interpolate("a cat", "a dog", n=3, output="pt"))
    agrees(monkeypatch, lambda: make(dict), lambda m: m.interpolate(IMAGE, -IMAGE, n=3, output="pt"))


def test_a_cascade(monkeypatch):
    from ldm.cascade import Cascade

    def cascade() -> Any:
        small = make(captions)
        return Cascade(small, make(lambda: {"low": LowRes(3, size=[16, 16])}, first_stage=Identity(3), side=16))

    wanted = cascade()("a cat", n=2, output="pt")
    with pretended(monkeypatch) as waits:
        model = moved(cascade())
        waits.clear()
        got = model("a cat", n=2, output="pt")
        assert sum(waits.values()) <= 3, waits
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-5)


def test_a_lora(monkeypatch):
    from ldm.adapters import lora

    def adapted() -> Any:
        model = make(captions)
        lora.start(model, "new", rank=2, alpha=None, wanted="attention", text_encoder=False, dropout=0.0)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        return model.eval()

    assert not torch.equal(adapted()("a cat", output="pt"), make(captions)("a cat", output="pt"))
    agrees(monkeypatch, adapted, lambda model: model("a cat", n=2, guidance=2.0, output="pt"))
