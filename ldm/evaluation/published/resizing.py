"""How published protocols resize images for Inception: the same images score differently by each (Parmar et al. 2022).

Each function takes (B, 3, H, W) float of 0..255 to (B, 3, 299, 299), scaled as the network of that protocol has it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.measures.inception import SIDE


@dataclass(frozen=True)
class Resizing:
    """A protocol's resizing: `apply` does it, `note` says it in a report."""

    apply: Callable[[Tensor], Tensor]
    note: str


def clean(images: Tensor) -> Tensor:
    """clean-fid's: Pillow's bicubic filter with antialiasing, for each channel in float, without rounding to 8 bits."""
    if images.shape[2:] != (SIDE, SIDE):
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return _centred(images.clamp(0, 255))


def tensorflow(images: Tensor) -> Tensor:
    """That of the graph in which FID was defined, as ADM's evaluator and torch-fidelity have it: bilinear without
    antialiasing, sampled from the upper left corner of each pixel."""
    down, across = (_corner_weights(size, images) for size in images.shape[2:])
    return _centred(down @ images @ across.T)


def pytorch(images: Tensor) -> Tensor:
    """pytorch-fid's: bilinear without antialiasing, sampled from the centres of pixels, scaled to [-1, 1]."""
    return F.interpolate(images / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1


RESIZINGS = {
    "clean": Resizing(clean, "clean-fid: bicubic with antialiasing, each channel in float"),
    "tensorflow": Resizing(tensorflow, "the original graph, ADM, torch-fidelity: bilinear without antialiasing"),
    "pytorch": Resizing(pytorch, "pytorch-fid: bilinear without antialiasing, half-pixel centres"),
}


def _centred(images: Tensor) -> Tensor:
    return (images - 128) / 128


def _corner_weights(size: int, like: Tensor) -> Tensor:
    """Weights (299, size) of bilinear interpolation at i size / 299; the last pixel continues beyond the edge."""
    at = torch.arange(SIDE, device=like.device, dtype=torch.float32) * (size / SIDE)
    low = at.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (at - low)[:, None].to(like.dtype)
    one = torch.eye(size, device=like.device, dtype=like.dtype)
    return one[low] * (1 - share) + one[high] * share
