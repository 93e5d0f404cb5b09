"""Samplers that remember nothing between their steps: DDPM, DDIM, Euler, Euler-ancestral, Heun.

All but Heun are one step: move down to sigma_down <= s, then add noise up to s. Each costs N calls of `denoise`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion.samplers.steps import DenoiseFn, NoiseFn, OnStep, full, start


def ddpm(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    variance: str = "posterior",
    clip: float | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on the whole table or a part of it.

    The step noise has the `posterior` variance s^2 (sigma^2 - s^2) / sigma^2 or the forward process's, `beta`, which is
    (sigma^2 - s^2)(1 + s^2) / (1 + sigma^2). With `clip` the denoised image is clamped to [-clip, clip]: for pixels.
    """
    if variance not in ("posterior", "beta"):
        raise UserError(f"ddpm has no variance '{variance}'.{did_you_mean(variance, ('posterior', 'beta'))}")

    def split(sigma: float, s: float) -> tuple[float, float]:
        down, up = _split(sigma, s, 1.0)
        if variance == "beta" and s > 0:
            up = math.sqrt((sigma**2 - s**2) * (1 + s**2) / (1 + sigma**2))
        return down, up

    clipped: DenoiseFn = denoise if clip is None else lambda x, sigma: denoise(x, sigma).clamp(-clip, clip)
    return _ancestral(clipped, x, sigmas, split=split, noise=noise, on_step=on_step)


def ddim(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): deterministic at eta = 0, DDPM with the posterior variance at eta = 1."""
    return _ancestral(denoise, x, sigmas, split=lambda sigma, s: _split(sigma, s, eta), noise=noise, on_step=on_step)


def euler(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Euler's method on the probability-flow ODE dx/dsigma = (x - D) / sigma: DDIM for VP, Euler in t for flow.

    First order. It draws no noise.
    """
    return _ancestral(denoise, x, sigmas, split=lambda sigma, s: (s, 0.0), noise=noise, on_step=on_step)


def euler_ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Euler to sigma_down, then noise (k-diffusion's sampler of that name): in sigma-space the same as `ddim`."""
    return ddim(denoise, x, sigmas, noise=noise, on_step=on_step, eta=eta)


def heun(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    variant: str = "flow",
) -> Tensor:
    """Heun's method on the probability-flow ODE: Euler's step, then the mean of the slopes at both its ends.

    With e the Euler step and D, D' the denoised images at x and e, that is e + w (D' - D), written so to spare the
    slopes' cancellation. Which slopes are averaged decides w:

    - `karras`: dx/dsigma, w = (sigma - s) / (2 s) (Karras et al. 2022, algorithm 1). Their grid has steps small beside
      sigma; from sigma 999 to 3 w is 166, and what D rounds or the network errs becomes the image.
    - `flow`, the default: dz/dt of rectified flow, z = x / (1 + sigma) and t = sigma / (1 + sigma), whatever the model
      was trained as. It is the same w times (1 + s) / (1 + sigma), and for a flow model Heun's method on its own ODE
      (diffusers' FlowMatchHeunDiscreteScheduler). Where sigma is small beside the data, of standard deviation 1, both
      are one; from pure noise w stays near (1 - t) / (2 t).

    Second order. Costs 2N - 1 calls of `denoise` on a grid that ends at 0, where the last step is Euler's. It draws no
    noise.
    """
    if variant not in ("flow", "karras"):
        raise UserError(f"heun has no variant '{variant}'.{did_you_mean(variant, ('flow', 'karras'))}")
    x, steps = start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        x = torch.lerp(denoised, x, s / sigma)
        if s > 0:
            scale = (1 + s) / (1 + sigma) if variant == "flow" else 1.0
            x = torch.add(x, denoise(x, full(x, s)) - denoised, alpha=scale * (sigma - s) / (2 * s))
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def _ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    split: Callable[[float, float], tuple[float, float]],
    noise: NoiseFn | None,
    on_step: OnStep | None,
) -> Tensor:
    """`split(sigma, s)` says how far a step goes down, and the standard deviation of the noise that it adds then."""
    noise = noise or torch.randn_like
    x, steps = start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        down, up = split(sigma, s)
        x = torch.lerp(denoised, x, down / sigma)
        if up > 0:
            x = x.add_(noise(x), alpha=up)
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def _split(sigma: float, s: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = s^2; eta is the share of DDPM's posterior noise."""
    up = min(eta * s * math.sqrt(sigma**2 - s**2) / sigma, s)
    return math.sqrt(s**2 - up**2), up
