"""Samplers: free functions from noise to an image, over any `denoise(x, sigma)`. DDIM is in `single_step`.

All share one signature. `x` (B, C, H, W) is noise from N(0, sigmas[0]^2), float32 or float64. `sigmas` (N + 1,) falls
strictly; its last value is 0 for a clean image. `noise(x)` samples the noise of a step, and `on_step(i, n, denoised)`
is called after each of the n steps, with i from 0. The result is x at the last sigma; at 0 that is the denoised image.

Tensors stay on the device of x, and the host never waits for it: what depends on sigma alone is computed in Python's
float64 from `sigmas`, which stays on the CPU. A step towards the denoised image is written as one `lerp`, which rounds
less than x + (s - sigma) d.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion.samplers.lcm import lcm
from ldm.diffusion.samplers.multistep import dpmpp_2m, dpmpp_2m_sde
from ldm.diffusion.samplers.single_step import ddim, ddpm, euler, euler_ancestral, heun
from ldm.diffusion.samplers.steps import DenoiseFn, NoiseFn, OnStep
from ldm.diffusion.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "DenoiseFn",
    "NoiseFn",
    "OnStep",
    "calls",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "get_sampler",
    "heun",
    "lcm",
    "unipc",
]

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    sampler.__name__: sampler
    for sampler in (ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, unipc, lcm)
}


def get_sampler(name: str, **options: Any) -> Callable[..., Tensor]:
    """The sampler of that name with its own options, such as eta, variance or clip, already set.

    Raises UserError for an unknown name or option.
    """
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler '{name}'.{did_you_mean(name, SAMPLERS)}")
    known = [key for key in inspect.signature(SAMPLERS[name]).parameters if key not in _COMMON]
    for key in options:
        if key not in known:
            raise UserError(f"the sampler {name} has no option '{key}'.{did_you_mean(key, known)}")
    return functools.partial(SAMPLERS[name], **options) if options else SAMPLERS[name]


_COMMON = ("denoise", "x", "sigmas", "noise", "on_step")


def calls(name: str, steps: int) -> int:
    """How often the sampler evaluates the denoiser on a grid of `steps` steps that ends at 0."""
    get_sampler(name)
    return 2 * steps - 1 if name == "heun" else steps
