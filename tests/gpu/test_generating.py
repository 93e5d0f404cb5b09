"""Generating on a GPU, in each precision and in tiles, against the CPU in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion import SAMPLERS
from tests.gpu.measures import waits
from tests.pretend.models import CONDITIONS, FEATURES, IMAGE, captions, make

pytestmark = pytest.mark.gpu

PSNR = {"float32": 60.0, "float16": 40.0, "bfloat16": 30.0}  # dB, at least


def both(gpu: torch.device, made: Callable[[], Any], call: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    got = call(made().to(gpu))
    assert got.device.type == gpu.type
    return got.float().cpu(), call(made())


def psnr(got: Tensor, wanted: Tensor) -> float:
    """dB, of images in [-1, 1]."""
    assert got.shape == wanted.shape and got.isfinite().all() and wanted.std() > 0.05
    return float(10 * torch.log10(4 / (got - wanted).square().mean().clamp_min(1e-12)))


@pytest.mark.parametrize("precision", PSNR)
@pytest.mark.parametrize("dit", [False, True], ids=["unet", "dit"])
def test_precision(gpu, exact, precision, dit):
    def generated(device: torch.device, computes_in: str) -> Tensor:
        model = make(captions, dit=dit).to(device)
        model.compute(computes_in, None, "image")
        return model("a cat", n=2, steps=6, guidance=3.0, output="pt").float().cpu()

    assert psnr(generated(gpu, precision), generated(torch.device("cpu"), "float32")) > PSNR[precision]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(gpu, exact, sampler):
    found = both(gpu, lambda: make(captions), lambda m: m("a cat", n=2, steps=6, sampler=sampler, output="pt"))
    assert psnr(*found) > PSNR["float32"]


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES)
def test_features(gpu, exact, options):
    found = both(gpu, lambda: make(captions), lambda m: m(["a cat", "a dog"], output="pt", batch_size=1, **options))
    assert psnr(*found) > PSNR["float32"]


@pytest.mark.parametrize(("parts", "options"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(gpu, exact, parts, options):
    assert psnr(*both(gpu, lambda: make(parts), lambda m: m(output="pt", **options))) > PSNR["float32"]


@pytest.mark.parametrize("precision", PSNR)
def test_tiles(gpu, exact, precision):
    """`tile=` with norms over the whole image is the whole image's result, in the CPU's float32 too."""
    image = IMAGE.repeat(1, 8, 8)[None]
    stage = make(captions)
    with torch.no_grad():
        whole = stage.decode(stage.encode(image))
        tiled = make(captions).to(gpu)
        tiled.compute(precision, 16, "image")
        got = tiled.decode(tiled.encode(image.to(gpu)))
    assert psnr(got.float().cpu(), whole) > PSNR[precision]


def test_a_call_waits_at_most_three_times(gpu):
    model = make(captions).to(gpu)
    model("a cat", n=2, steps=6, guidance=3.0, output="pt")
    with waits(gpu) as found:
        model("a cat", n=2, steps=6, guidance=3.0, output="pt")
    assert len(found) <= 3, found
