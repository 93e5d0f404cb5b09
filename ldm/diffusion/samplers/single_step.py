"""Samplers without memory between their steps: DDPM, DDIM, Euler, Euler-ancestral, Heun.

In all but Heun's, a step moves down to sigma_down <= s and then adds noise up to s; they cost N calls of `denoise`.
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
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with all timesteps of the table or some of them.

    The `variance` of a step's noise is that of the `posterior`, s^2 (sigma^2 - s^2) / sigma^2, or that of the forward
    process, `beta`, (sigma^2 - s^2)(1 + s^2) / (1 + sigma^2). With `clip` the denoised image is clamped to
    [-clip, clip], for models of pixels.
    """
    if variance not in ("posterior", "beta"):
        raise UserError(f"ddpm has no variance '{variance}'.{did_you_mean(variance, ('posterior', 'beta'))}")

    def variance_split(sigma: float, s: float) -> tuple[float, float]:
        """(sigma_down, sigma_up) for a step from `sigma` to `s`."""
        down, up = _split(sigma, s, 1.0)
        if variance == "beta" and s > 0:
            up = math.sqrt((sigma**2 - s**2) * (1 + s**2) / (1 + sigma**2))
        return down, up

    clipped: DenoiseFn = denoise if clip is None else lambda x, sigma: denoise(x, sigma).clamp(-clip, clip)
    return _ancestral(clipped, x, sigmas, split=variance_split, noise=noise, on_step=on_step)


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

    It is of first order and draws no noise.
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

    With e the result of Euler's step and D, D' the denoised images at x and e, the result is e + w (D' - D), a form
    that avoids the cancellation in the slopes. `variant` says which slopes are averaged, and so decides w:

    - `karras`: dx/dsigma, with w = (sigma - s) / (2 s) (Karras et al. 2022, algorithm 1). The steps of their grid are
      small compared with sigma. In a step from sigma = 999 to 3, w is 166, and errors of the network dominate the
      image.
    - `flow`, the default: dz/dt of rectified flow, z = x / (1 + sigma) and t = sigma / (1 + sigma), for models of any
      kind. It multiplies w by (1 + s) / (1 + sigma). For a flow model it is Heun's method on the model's own ODE
      (diffusers' FlowMatchHeunDiscreteScheduler). Where sigma is small compared with 1, the data's standard deviation,
      both variants agree; from pure noise w stays near (1 - t) / (2 t).

    It is of second order, draws no noise, and costs 2N - 1 calls of `denoise` on a grid that ends at 0, where the last
    step is Euler's.
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
    """Steps down to a level sigma_down, each followed by noise of standard deviation sigma_up, where
    (sigma_down, sigma_up) = split(sigma, s)."""
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
