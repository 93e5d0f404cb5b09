"""Inpainting with any model, without training: from a `denoise` to another one that keeps a known part of the image."""

import torch
from torch import Tensor

from ldm.diffusion.parameterization import broadcast
from ldm.diffusion.samplers import DenoiseFn


def keeping(denoise: DenoiseFn, known: Tensor, keep: Tensor, noise: Tensor) -> DenoiseFn:
    """A `denoise` for images that are known to be `known` (B, C, H, W) where `keep` (B, 1, H, W) is 1.

    Before each call the kept part of x is replaced by known + sigma noise, always with the same `noise` (B, C, H, W),
    and after it the kept part of x0 by `known`, so that what is generated fits what is kept (Lugmayr et al. 2022, eq.
    8, without resampling). It costs no further calls.
    """

    def denoise_around(x: Tensor, sigma: Tensor) -> Tensor:
        """`x` (B, C, H, W) at `sigma` (B,) -> x0 (B, C, H, W), which is `known` where it is kept."""
        given = known + broadcast(sigma, x) * noise
        return torch.lerp(denoise(torch.lerp(x, given, keep), sigma), known, keep)

    return denoise_around
