"""Images are resized as the tools of the protocols do it."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.evaluation.published.resizing import SIDE, clean, pytorch, tensorflow

SIZES = [(40, 30), (310, 350), (SIDE, 64), (SIDE, SIDE), (1, 5)]


def noise(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_pillow_s_bicubic_filter_of_each_channel(size: tuple[int, int]) -> None:
    images = noise(size)
    channels = [
        Image.fromarray(channel.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for channel in images[1]
    ]
    expected = (np.stack([np.asarray(channel) for channel in channels]).clip(0, 255) - 128) / 128
    assert np.abs(clean(images)[1].numpy() - expected).max() < 0.01 / 128


@pytest.mark.parametrize("size", SIZES)
def test_tensorflow_is_that_of_torch_fidelity(size: tuple[int, int]) -> None:
    module: Any = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = noise(size)
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x(images, (SIDE, SIDE), align_corners=False)
    assert torch.allclose(tensorflow(images), (theirs - 128) / 128, atol=1e-5)


def test_pytorch_is_between_minus_one_and_one() -> None:
    images = torch.tensor([0.0, 255.0]).expand(1, 3, 2, 2)
    assert pytorch(images).min() == -1 and pytorch(images).max() == pytest.approx(1)
    ramp = torch.arange(40.0).expand(1, 3, 40, 40)
    half = F.interpolate(ramp, (SIDE, SIDE), mode="bilinear", align_corners=False) / 127.5 - 1
    assert torch.allclose(pytorch(ramp), half, atol=1e-6)


def test_the_three_protocols_differ() -> None:
    images = noise((40, 40))
    found = [resize(images) for resize in (clean, tensorflow, pytorch)]
    for i in range(3):
        assert (found[i] - found[i - 1]).abs().mean() > 0.01
