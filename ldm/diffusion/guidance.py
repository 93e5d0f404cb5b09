"""Guidance: from a denoiser and its conditions to another `denoise(x, sigma)`, which any sampler can use."""

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
    """The terms of a guided denoiser, D = D_full + sum over j of w_j (D_j - D_full).

    `full` is a `Cond` with all conditions; without guidance it is the only one that is evaluated. `others` are pairs of
    a further `Cond` of the same batch and its weight w_j. Classifier-free guidance of scale s has one of them, the
    unconditional one, with weight 1 - s (Ho and Salimans 2022).
    """

    full: Any
    others: tuple[tuple[Any, float], ...] = ()

    def map(self, function: Callable[[Any], Any]) -> "Terms":
        """The same terms with `function` applied to every condition."""
        return Terms(function(self.full), tuple((function(cond), weight) for cond, weight in self.others))


def classifier_free(cond: Any, null: Any, scale: float) -> Terms:
    """The terms of D_null + scale (D - D_null), classifier-free guidance (Ho and Salimans 2022)."""
    return Terms(cond, ((null, 1 - scale),))


def guided(
    denoiser: ConditionalDenoiseFn,
    terms: Terms,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """The guided denoiser of `terms`, at the cost of one call of `denoiser` with all terms of nonzero weight joined.

    With an `interval` (lo, hi] there is guidance only for sigma within it (Kynkaanniemi et al. 2024); outside, the full
    condition is evaluated alone. The first sigma of the batch decides for all of it, and the host reads it in every
    call.

    `rescale` phi moves the standard deviation of the guided result towards the conditional one's, for each sample (Lin
    et al. 2023, eq. 15 and 16). The result depends on the space in which this is done; here it is v, whatever the model
    predicts. Since D = c_skip x + c_out v with c_skip = 1 / (1 + sigma^2), to scale v is to scale D - c_skip x.
    """
    if not 0 <= rescale <= 1:
        raise UserError(f"rescale={rescale}: has to lie between 0 (off) and 1.")
    used = [(cond, weight) for cond, weight in terms.others if weight != 0]
    joined = terms.full.cat(*(cond for cond, _ in used)) if used else terms.full

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        """`x` (B, C, H, W) at `sigma` (B,) -> the guided x0 (B, C, H, W)."""
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

    It works with and without conditions, and costs one call of each model; at scale 1 `bad` isn't called.
    """
    return away(lambda x, sigma: denoiser(x, sigma, cond), lambda x, sigma: bad(x, sigma, cond), scale)


def away(denoise: DenoiseFn, bad: DenoiseFn, scale: float, interval: tuple[float, float] | None = None) -> DenoiseFn:
    """D_bad + scale (D - D_bad) for a `denoise` that may be guided already: see `autoguidance`.

    Outside of `interval` (lo, hi] it is `denoise` alone.
    """
    if scale == 1:
        return denoise

    def denoise_away(x: Tensor, sigma: Tensor) -> Tensor:
        """`x` (B, C, H, W) at `sigma` (B,) -> the guided x0 (B, C, H, W)."""
        if interval is not None and not interval[0] < sigma[0].item() <= interval[1]:
            return denoise(x, sigma)
        return torch.lerp(bad(x, sigma), denoise(x, sigma), scale)

    return denoise_away


def rescaled(result: Tensor, conditional: Tensor, x: Tensor, sigma: Tensor, phi: float) -> Tensor:
    """`result` (B, C, H, W) with its standard deviation in v-space moved by the share `phi` towards that of
    `conditional`: see `guided`."""
    skip = x / (1 + broadcast(sigma, x) ** 2)
    dims = tuple(range(1, x.ndim))
    ratio = (conditional - skip).std(dims, keepdim=True) / (result - skip).std(dims, keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(skip, result, 1 + phi * (ratio - 1))
