"""What all samplers share: types, the grid as pairs of floats, and the noise level as a tensor for the batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.diffusion.parameterization import at_least_float32

DenoiseFn = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), sigma (B,)) -> x0 (B, C, H, W)
NoiseFn = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> standard normal noise like it
OnStep = Callable[[int, int, Tensor], Any]  # (i, n, denoised)

LONGEST = 2.0  # a multistep formula isn't used beyond this ratio of a step to the one before, in ln sigma


def start(x: Tensor, sigmas: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """`x` in float32 or float64, and the pairs (sigma, next sigma) as Python's floats.

    Raises UserError unless `sigmas` (N + 1,) fall strictly.
    """
    values = sigmas.tolist()
    if len(values) < 2 or values[-1] < 0 or any(s >= sigma for sigma, s in pairs(values)):
        raise UserError(f"sigmas have to fall strictly, to 0 or above: {values}; use a parameterization's grid.")
    return at_least_float32(x), list(pairs(values))


def pairs(values: list[float]) -> Iterator[tuple[float, float]]:
    """Each value with the next one."""
    return zip(values[:-1], values[1:], strict=True)


def full(x: Tensor, sigma: float) -> Tensor:
    """The noise level of each sample, (B,), on the CPU, where it can be read without waiting for the device of `x`."""
    return torch.full((len(x),), sigma, dtype=x.dtype, device="cpu")
