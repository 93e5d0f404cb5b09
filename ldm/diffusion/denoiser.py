"""From a network to a denoiser, and the loss that trains it."""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.diffusion.noise import TrainingNoise, default_noise
from ldm.diffusion.parameterization import Coefficients, Parameterization, at_least_float32, broadcast
from ldm.diffusion.weighting import Uniform, Weighting, weighted_mean


@register
class Denoiser(nn.Module):
    """D(x, sigma) = c_skip x + c_out network(c_in x, c_noise, cond) (Karras et al. 2022, eq. 7).

    `network(x (B, C, H, W), c_noise (B,), cond)` returns (B, C, H, W). `parameterization` decides what it predicts,
    `noise` which noise levels it is trained on (a map from uniform numbers to sigma), and `weighting` how much each
    level counts. x, sigma and the four numbers stay in float32, or in float64 if they are given in it, whatever the
    network computes in. That holds under autocast too, which doesn't cast products and sums.

    `loss` is "mse", "l1" or "huber", which is the pseudo-Huber 2 c (sqrt(d^2 + c^2) - c) with c = `huber_c`: d^2 for
    small errors, 2 c |d| for large ones.

    `offset_noise` s adds to the noise of training, for each channel, s times a standard normal number that is the same
    at all positions (Guttenberg 2023), so that a model whose schedule doesn't end in pure noise learns to change the
    mean colour. 0 is off, 0.1 is usual; zero-terminal SNR solves the same problem more cleanly.

    Where `cond` has a `base` b (B, C, H, W), an image that lacks only details, the difference from it is diffused:
    D(x, sigma) = b + D'(x - b, sigma), with x = x0 + sigma noise as before.
    """

    reads: torch.dtype | None = None  # the type to which the network's input is cast; None: it isn't cast

    def __init__(
        self,
        network: nn.Module,
        parameterization: Parameterization,
        *,
        noise: TrainingNoise | None = None,
        weighting: Weighting | None = None,
        loss: str = "mse",
        huber_c: float = 0.1,
        offset_noise: float = 0.0,
    ):
        super().__init__()
        if loss not in _PENALTIES:
            raise UserError(f"loss '{loss}' is unknown.{did_you_mean(loss, _PENALTIES)}")
        if not huber_c > 0:
            raise UserError(f"huber_c={huber_c}: has to be above 0.")
        if not offset_noise >= 0:
            raise UserError(f"offset_noise={offset_noise}: has to be at least 0 (off); 0.1 is usual.")
        self.network = network
        self.parameterization = parameterization
        self.noise = noise or default_noise(parameterization)
        self.weighting = weighting or Uniform()
        self.weighting.reach(parameterization.sigma_max)
        self.penalty, self.huber_c, self.offset_noise = _PENALTIES[loss], huber_c, offset_noise

    def forward(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """The denoised x0 (B, C, H, W) of `x` (B, C, H, W) at `sigma` (B,). It costs one call of the network."""
        x, sigma = at_least_float32(x), at_least_float32(sigma)
        base = getattr(cond, "base", None)
        x = x if base is None else x - base
        c = self._coefficients(x, sigma)
        denoised = broadcast(c.c_skip, x) * x + broadcast(c.c_out, x) * self._raw(x, c, cond)
        return denoised if base is None else denoised + base

    def around(self, network: nn.Module, dtype: torch.dtype) -> "Denoiser":
        """The same denoiser with another network, whose input is cast to `dtype`.

        If nothing differs it is this object, because modules that FSDP has sharded can't be copied.
        """
        if network is self.network and dtype == (self.reads or torch.float32):
            return self
        twin = copy(self)
        twin._modules, twin.reads = {**self._modules, "network": network}, dtype
        return twin

    def loss(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, cond: Any = None, *, places: Tensor | None = None
    ) -> Tensor:
        """The weighted loss (B,) of each sample `x0` (B, C, H, W) with `noise` (B, C, H, W) at `sigma` (B,).

        It is the penalty of the difference between the network's output and its target, averaged over C, H, W, and
        where `places` (B, 1, H, W) are given, by their weights (`weighted_mean`).
        """
        x0, noise, sigma = at_least_float32(x0), at_least_float32(noise), at_least_float32(sigma)
        base = getattr(cond, "base", None)
        x0 = x0 if base is None else x0 - base
        c = self._coefficients(x0, sigma)
        raw = self._raw(x0 + broadcast(sigma, x0) * noise, c, cond)
        error = raw - self.parameterization.target(x0, noise, sigma)
        penalty = self.penalty(error, self.huber_c)
        each = penalty.flatten(1).mean(1) if places is None else weighted_mean(penalty, places)
        return self.weighting.weighted(each, sigma, c)

    def _coefficients(self, x: Tensor, sigma: Tensor) -> Coefficients:
        """The four coefficients, on the device of x. Samplers have sigma on the CPU, so they are computed there and
        moved together."""
        c = self.parameterization.coefficients(sigma)
        return c if sigma.device == x.device else Coefficients(*send(torch.stack(c), x.device))

    def _raw(self, x: Tensor, c: Coefficients, cond: Any) -> Tensor:
        scaled = broadcast(c.c_in, x) * x
        return at_least_float32(self.network(scaled.to(self.reads or scaled.dtype), c.c_noise, cond))


_PENALTIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "mse": lambda d, c: d.square(),
    "l1": lambda d, c: d.abs(),
    "huber": lambda d, c: 2 * c * d.square() / ((d.square() + c**2).sqrt() + c),  # the difference of roots would cancel
}
