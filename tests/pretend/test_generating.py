"""Generating on the pretended device equals generating on the CPU, and waits at most three times a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm.conditioning import LowRes
from ldm.diffusion import EDM, SAMPLERS, Eps, Flow
from ldm.networks import Identity, controlnet_for
from tests.pretend.device import DEVICE, moved, pretended
from tests.pretend.models import CONDITIONS, FEATURES, IMAGE, MASK, captions, make


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


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("dit", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["unet", "dit"])
def test_features(monkeypatch, options, dit):
    agrees(
        monkeypatch,
        lambda: make(captions, dit=dit),
        lambda model: model(["a cat", "a dog"], output="pt", batch_size=1, **options),
    )


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

    requested = {"image": IMAGE.repeat(1, 2, 3), "mask": MASK.repeat(1, 2, 3), "guidance": 2.0, "steps": 2}
    agrees(monkeypatch, lowered, lambda model: model("a cat", output="pt", **requested), atol=0.05)


def test_super_resolution(monkeypatch):
    def enlarging() -> Any:
        return make(lambda: {"low": LowRes(3, size=[8, 8])}, first_stage=Identity(3))

    agrees(monkeypatch, enlarging, lambda model: model(image=IMAGE[:, ::2, ::2], noise_level=0.1, output="pt"))


def test_control_images(monkeypatch):
    from ldm.adapters.controlnet import Control
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
    from ldm.model.cascade import Cascade

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
