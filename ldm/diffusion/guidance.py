"""Guidance: a denoiser and its conditions become another `denoise(x, sigma)`, which any sampler takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.diffusion.parameterization import broadcast
from ldm.diffusion.samplers import DenoiseFn

ConditionalDenoiseFn = Callable[[Tensor, Tensor, Any], Tensor]  # (x (B, C, H, W), sigma (B,), cond) -> x0


@dataclass(frozen=True)
class Terms:
    """What guidance evaluates: D = D_full + sum of w_j (D_j - D_full), with `others` pairs of a condition j and its
    weight w_j. `full` holds all conditions; it alone is evaluated where there is no guidance.

    Classifier-free guidance of scale s is one other term, the unconditional one with weight 1 - s (Ho, Salimans 2022).
    """

    full: Any
    others: tuple[tuple[Any, float], ...] = ()

    def map(self, function: Callable[[Any], Any]) -> "Terms":
        """Every condition passed through `function`."""
        return Terms(function(self.full), tuple((function(cond), weight) for cond, weight in self.others))


def classifier_free(cond: Any, null: Any, scale: float) -> Terms:
    """D_null + scale (D - D_null)."""
    return Terms(cond, ((null, 1 - scale),))


def guided(
    denoiser: ConditionalDenoiseFn,
    terms: Terms,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """The guided denoiser of `terms`. It costs one call with the joined batch of all terms that have weight.

    `interval` (lo, hi]: guidance only for sigma within it (Kynkaanniemi et al. 2024); outside, the full condition is
    evaluated alone. For that the host reads sigma once a call, the batch's first for all.

    `rescale` phi (Lin et al. 2023, eq. 15 and 16) moves the guided result's standard deviation to the conditional's,
    per sample. It depends on the space it is done in: here v, whatever the model predicts. Since D = c_skip x + c_out v
    with v's c_skip = 1 / (1 + sigma^2), scaling v is scaling D - c_skip x.
    """
    if not 0 <= rescale <= 1:
        raise UserError(f"rescale={rescale}: has to lie between 0 (off) and 1.")
    used = [(cond, weight) for cond, weight in terms.others if weight != 0]
    joined = terms.full.cat(*(cond for cond, _ in used)) if used else terms.full

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if not used or (interval is not None and not interval[0] < sigma[0].item() <= interval[1]):
            return denoiser(x, sigma, terms.full)
        n = 1 + len(used)
        conditional, *others = denoiser(x.repeat(n, 1, 1, 1), sigma.repeat(n), joined).chunk(n)
        result = conditional
        for other, (_, weight) in zip(others, used, strict=True):
            result = torch.add(result, other - conditional, alpha=weight)
        return rescaled(result, conditional, x, sigma=sigma, phi=rescale) if rescale else result

    return denoise


def autoguidance(denoiser: ConditionalDenoiseFn, bad: ConditionalDenoiseFn, cond: Any, scale: float = 1.0) -> DenoiseFn:
    """D_bad + scale (D - D_bad): away from a smaller or less trained model of the same data (Karras et al. 2024).

    Works without conditions too. Costs a call of each model; at scale 1 `bad` isn't called.
    """
    return away(lambda x, sigma: denoiser(x, sigma, cond), lambda x, sigma: bad(x, sigma, cond), scale)


def away(denoise: DenoiseFn, bad: DenoiseFn, scale: float, interval: tuple[float, float] | None = None) -> DenoiseFn:
    """`autoguidance` of what is guided already; outside of `interval` (lo, hi] `denoise` alone."""
    if scale == 1:
        return denoise

    def led(x: Tensor, sigma: Tensor) -> Tensor:
        if interval is not None and not interval[0] < sigma[0].item() <= interval[1]:
            return denoise(x, sigma)
        return torch.lerp(bad(x, sigma), denoise(x, sigma), scale)

    return led


def rescaled(result: Tensor, conditional: Tensor, x: Tensor, sigma: Tensor, phi: float) -> Tensor:
    """`result` with its standard deviation in v-space moved by phi towards the conditional's."""
    skip = x / (1 + broadcast(sigma, x) ** 2)
    dims = tuple(range(1, x.ndim))
    ratio = (conditional - skip).std(dims, keepdim=True) / (result - skip).std(dims, keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(skip, result, 1 + phi * (ratio - 1))
