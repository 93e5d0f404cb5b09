"""UniPC: a predictor and a corrector that share their evaluations (Zhao et al. 2023, arXiv 2302.04867)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion.samplers.steps import LONGEST, DenoiseFn, NoiseFn, OnStep, full, start

VARIANTS = ("bh1", "bh2")


class _Step(NamedTuple):
    """A step of `order` from x at sigma to s, with what both its predictor and its corrector use."""

    x: Tensor
    sigma: float
    s: float
    history: list[tuple[float, Tensor]]  # (sigma, denoised), the step's own start first
    order: int


def unipc(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    order: int = 2,
    variant: str = "bh2",
) -> Tensor:
    """UniPC-p for the denoised image, in the form with B(h) (Zhao et al. 2023, algorithms 5 to 8, eq. 3 and 9).

    The predictor uses the last `order` denoised images (1 to 3). The denoised image at the predicted point serves
    twice: it corrects that point, which raises the order by 1, and it starts the next step. So N steps cost N calls of
    `denoise`. `variant` is B(h) = e^-h - 1 (bh2) or -h (bh1), with h = ln(sigma / s); the paper recommends bh2 for few
    guided steps. The order rises over the first steps, and falls to 1 in the last one if the grid ends at 0. It draws
    no noise.

    Three bounds that aren't in the paper keep few and uneven steps stable: a step more than twice as long as the one
    before has order 1, a step with h > 1 has order 2 at most, and |B| of bh1 is at most that of bh2 at h = 1. The
    proof of the order only needs B = O(h).
    """
    if order not in (1, 2, 3):
        raise UserError(f"unipc has no order={order}: it is 1, 2 or 3.")
    if variant not in VARIANTS:
        raise UserError(f"unipc has no variant '{variant}'.{did_you_mean(variant, VARIANTS)}")
    x, steps = start(x, sigmas)
    history: list[tuple[float, Tensor]] = []
    last: _Step | None = None
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        if last is not None:
            x = _stepped(last, variant, denoised)
        history = [(sigma, denoised), *history][:order]
        left = len(steps) - i if steps[-1][1] == 0 else order
        last = _Step(x, sigma, s, history=history, order=min(left, _sound_order(history, s)))
        x = denoised if s == 0 else _stepped(last, variant)
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def _sound_order(history: list[tuple[float, Tensor]], s: float) -> int:
    """The highest order at which the step to s is stable: how many denoised images of `history` predict it."""
    if s == 0 or len(history) == 1:
        return 1
    sigmas = [sigma for sigma, _ in history]
    h = math.log(sigmas[0] / s)
    if h > LONGEST * math.log(sigmas[1] / sigmas[0]):
        return 1
    return min(len(history), 2 if h > 1 else 3)


def _stepped(step: _Step, variant: str, ahead: Tensor | None = None) -> Tensor:
    """x at `step.s`: predicted, or corrected with the denoised image `ahead` at the predicted point.

    x <- (s / sigma) x + (1 - e^-h) D_0 - B(h) sum_k rho_k (D_k - D_0) / r_k, r_k the place of D_k's sigma between the
    step's own (0) and s (1), in ln sigma.
    """
    h = math.log(step.sigma / step.s)
    (_, newest), *older = step.history[: step.order]
    places = [math.log(step.sigma / sigma) / h for sigma, _ in older]
    slopes = [(denoised - newest) / place for (_, denoised), place in zip(older, places, strict=True)]
    if ahead is not None:
        places, slopes = [*places, 1.0], [*slopes, ahead - newest]
    b = math.expm1(-h) if variant == "bh2" else max(-h, math.expm1(-1))
    x = torch.lerp(newest, step.x, step.s / step.sigma)
    for weight, slope in zip(_weights(places, h, b), slopes, strict=True):
        x = torch.add(x, slope, alpha=-b * weight)
    return x


def _weights(places: list[float], h: float, b: float) -> list[float]:
    """The rho that make the step exact if denoised images are polynomials in ln sigma: sum_k r_k^(n-1) rho_k = g_n.

    g_n = n! phi_(n+1)(-h) (-h) / B(h), with phi_1(z) = (e^z - 1) / z and phi_(n+1)(z) = (phi_n(z) - 1 / n!) / z. With
    one place rho is 1/2, whatever h is (the paper's remark below eq. 5): of the same order, and more stable.
    """
    if len(places) < 2:
        return [0.5] * len(places)
    phi, wanted = math.expm1(-h) / -h, []
    for n in range(1, len(places) + 1):
        phi = (phi - 1 / math.factorial(n)) / -h
        wanted.append(math.factorial(n) * phi * -h / b)
    r = torch.tensor(places, dtype=torch.float64, device="cpu")
    powers = torch.stack([r**n for n in range(len(places))])
    return torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64, device="cpu")).tolist()
