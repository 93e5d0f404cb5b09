"""DPM-Solver++(2M): second order from the last two denoised images, deterministic or with noise."""

import math

import torch
from torch import Tensor

from ldm.diffusion.samplers.steps import LONGEST, DenoiseFn, NoiseFn, OnStep, full, start


def dpmpp_2m(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order in ln sigma from the last two denoised images.

    The first step and the one to 0 are of first order. It costs N calls of `denoise` and draws no noise.
    """
    return dpmpp_2m_sde(denoise, x, sigmas, noise=noise, on_step=on_step, eta=0.0)


def dpmpp_2m_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 5; k-diffusion's midpoint form), `dpmpp_2m` at eta = 0.

    With h = ln(sigma / s) and D* = D + (D - D_prev) r / 2, r = h / h_prev,
    x <- e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) D* + s sqrt(1 - e^(-2 eta h)) noise.
    It costs N calls of `denoise`.

    r is limited to 2 (`LONGEST`). In short grids such as `kl_optimal` or `linspace` a step can be 7 times as long as
    the one before, and D is bounded, so a line through its two last values doesn't reach that far.
    """
    noise = noise or torch.randn_like
    x, steps = start(x, sigmas)
    previous, h_previous = None, 0.0
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        if s == 0:
            x = denoised  # h is infinite: the limit, without the correction
        else:
            h = math.log(sigma / s)
            ahead = denoised if previous is None else denoised.lerp(previous, -min(h / h_previous, LONGEST) / 2)
            x = torch.lerp(ahead, x, (s / sigma) ** (1 + eta))
            if eta > 0:
                x = x.add_(noise(x), alpha=s * math.sqrt(-math.expm1(-2 * eta * h)))
            previous, h_previous = denoised, h
        if on_step:
            on_step(i, len(steps), denoised)
    return x
