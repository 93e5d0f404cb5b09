"""Guidance: a denoiser and its conditions become another `denoise(x, sigma)`, which any sampler takes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.diffusion.parameterization import broadcast
from ldm.diffusion.samplers import DenoiseFn

ConditionalDenoiseFn = Callable[[Tensor, Tensor, Any], Tensor]  # (x (B, C, H, W), sigma (B,), cond) -> x0


def guided(
    denoiser: ConditionalDenoiseFn,
    cond: Any,
    null: Any = None,
    scale: Any = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    batched: bool = True,
) -> DenoiseFn:
    """Classifier-free guidance (Ho, Salimans 2022): D = D_null + sum_i s_i (D_i - D_null).

    `cond` is one condition, or a list or dict of them with a list or dict of scales (Liu et al. 2022, composition);
    None is unconditional. `null` is the dropped condition, or a negative one. What has no weight isn't evaluated: at
    scale 1 the null condition, at scale 0 the conditional.

    `interval` (lo, hi]: guidance only for sigma within it (Kynkaanniemi et al. 2024). Outside, the scales are divided
    by their sum, so that D_null drops out: a single condition is then evaluated alone, at half the cost. For that the
    host reads sigma once a call, the batch's first for all.

    `rescale` phi (Lin et al. 2023, eq. 15 and 16) moves the guided result's standard deviation to the conditional's,
    per sample; with several conditions to that of their mean. It depends on the space it is done in: here v, whatever
    the model predicts. Since D = c_skip x + c_out v with v's c_skip = 1 / (1 + sigma^2), scaling v is scaling
    D - c_skip x.

    Costs one call with the joined batch (conditions have a method `cat(*others)`), or with batched=False one for each.
    """
    conds, scales = _terms(cond, scale)
    if not 0 <= rescale <= 1:
        raise UserError(f"rescale={rescale}: has to lie between 0 (off) and 1.")
    if not conds:
        return lambda x, sigma: denoiser(x, sigma, null)
    inside = _Mix(denoiser, conds, scales, null, rescale, batched)
    if interval is None:
        return inside
    lo, hi = interval
    total = sum(scales)
    outside = _Mix(denoiser, conds, [s / total for s in scales], null, rescale, batched) if total else inside
    return lambda x, sigma: (inside if lo < sigma[0].item() <= hi else outside)(x, sigma)


def mixed(
    denoiser: ConditionalDenoiseFn,
    conds: Sequence[Any],
    weights: Sequence[float],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """D = sum of w_i D_i over conditions whose weights sum up to 1 and of which the last says everything.

    That is every guidance by scales: with one scale s the null condition has weight 1 - s and the conditional s.
    Outside of `interval` (lo, hi] the last is evaluated alone. `rescale`: see `guided`. Costs one call with the joined
    batch of all that have weight.
    """
    if not 0 <= rescale <= 1:
        raise UserError(f"rescale={rescale}: has to lie between 0 (off) and 1.")
    used = [(cond, weight) for cond, weight in zip(conds[:-1], weights[:-1], strict=True) if weight != 0]
    last = conds[-1]
    joined = last.cat(*(cond for cond, _ in used)) if used else last

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if not used or (interval is not None and not interval[0] < sigma[0].item() <= interval[1]):
            return denoiser(x, sigma, last)
        n = 1 + len(used)
        conditional, *others = denoiser(x.repeat(n, 1, 1, 1), sigma.repeat(n), joined).chunk(n)
        result = conditional
        for other, (_, weight) in zip(others, used, strict=True):
            result = torch.add(result, other - conditional, alpha=weight)
        return rescaled(result, conditional, x, sigma, rescale) if rescale else result

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


def _terms(cond: Any, scale: Any) -> tuple[list[Any], list[float]]:
    """The conditions and their scales, as two lists of one length."""
    if cond is None:
        return [], []
    if isinstance(cond, Mapping):
        if not isinstance(scale, Mapping):
            scale = dict.fromkeys(cond, scale)
        if set(cond) != set(scale):
            raise UserError(f"conditions {sorted(cond)} and scales {sorted(scale)} have to have the same names.")
        return list(cond.values()), [float(scale[name]) for name in cond]
    if isinstance(cond, Sequence):
        scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(cond)
        if len(cond) != len(scales):
            raise UserError(f"{len(cond)} conditions and {len(scales)} scales: give one scale for each condition.")
        return list(cond), [float(s) for s in scales]
    return [cond], [float(scale)]


class _Mix:
    """D_0 + sum_i s_i (D_i - D_0), over the conditions that have weight.

    D_0 is the null condition's; where the scales sum up to 1 it cancels, and the first condition's stands in its place.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiseFn,
        conds: list[Any],
        scales: list[float],
        null: Any,
        rescale: float,
        batched: bool,
    ):
        used = [(cond, scale) for cond, scale in zip(conds, scales, strict=True) if scale != 0]
        self.first = 0 if math.isclose(sum(scales), 1) else 1  # where the conditionals begin
        if self.first:
            if null is None:
                raise UserError("guidance needs the null condition to guide away from: give `null`, or scale=1.")
            used = [(null, 0.0), *used]
        self.conds, self.scales = [cond for cond, _ in used], [scale for _, scale in used]
        self.joined = self.conds[0].cat(*self.conds[1:]) if batched and len(used) > 1 else None  # once, not each step
        self.denoiser, self.rescale = denoiser, rescale

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = self._evaluate(x, sigma)
        result = denoised[0]
        for d, scale in zip(denoised[1:], self.scales[1:], strict=True):
            result = torch.add(result, d - denoised[0], alpha=scale)
        if self.rescale and len(denoised) > 1:
            conditional = torch.stack(list(denoised[self.first :])).mean(0)
            result = rescaled(result, conditional, x, sigma, self.rescale)
        return result

    def _evaluate(self, x: Tensor, sigma: Tensor) -> Sequence[Tensor]:
        n = len(self.conds)
        if self.joined is None:
            return [self.denoiser(x, sigma, cond) for cond in self.conds]
        return self.denoiser(x.repeat(n, 1, 1, 1), sigma.repeat(n), self.joined).chunk(n)


def rescaled(result: Tensor, conditional: Tensor, x: Tensor, sigma: Tensor, phi: float) -> Tensor:
    """`result` with its standard deviation in v-space moved by phi towards the conditional's."""
    skip = x / (1 + broadcast(sigma, x) ** 2)
    dims = tuple(range(1, x.ndim))
    ratio = (conditional - skip).std(dims, keepdim=True) / (result - skip).std(dims, keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(skip, result, 1 + phi * (ratio - 1))
