"""How much each noise level counts in the loss: a weight multiplies the loss on the network's own target."""

import math

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.diffusion.parameterization import Coefficients

PURE_NOISE = 100.0  # the sigma above which nothing of whitened data is left: the signal-to-noise ratio is below 1e-4


def weighted_mean(values: Tensor, places: Tensor) -> Tensor:
    """The mean (B,) of `values` (B, C, H, W) over channels and places, by the places' weights (B, 1, H, W) >= 0.

    It is sum(w v) / (C sum(w)), so an image counts as much whatever share of it is weighted; 0 where all weights are 0.
    A place of weight 0 has a gradient of exactly 0.
    """
    total = places.flatten(1).sum(1) * values.shape[1]
    return (values * places).flatten(1).sum(1) / torch.where(total > 0, total, torch.ones_like(total))


class Weighting:
    """The base of loss weights."""

    def reach(self, sigma_max: float) -> None:
        """The denoiser calls this once with its highest noise level, so that a weighting can depend on it."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The weight (B,) of the loss at `sigma` (B,)."""
        raise NotImplementedError

    def weighted(self, loss: Tensor, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The quantity to minimise (B,), from the `loss` (B,) on the network's own target."""
        return self.weight(sigma, coefficients) * loss


@register
class Uniform(Weighting):
    """Every noise level has weight 1: DDPM's simple loss for eps, and EDM's own lambda = 1 / c_out^2 for EDM."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """1 at every `sigma` (B,): (B,)."""
        return sigma.new_ones(sigma.shape)


@register
class MinSNR(Weighting):
    """min(S, gamma) on the error of x0, with S = 1 / sigma^2 (Hang et al. 2023): c_out^2 min(S, gamma) on the target.

    For eps that is min(1, gamma / S), for x0 min(S, gamma), for v min(S, gamma) / (S + 1).

    All of these but eps's weight go to 0 with S, so a model whose schedule ends in pure noise would hardly be trained
    where sampling starts. `zero_terminal` replaces S by S + 1: for v the weight is min(S + 1, gamma) / (S + 1), which
    is 1 at S = 0. By default (None) it is on for models whose schedule ends in pure noise: with zero-terminal SNR, a
    cosine schedule or rectified flow. With false they use the published form too.
    """

    def __init__(self, gamma: float = 5.0, zero_terminal: bool | None = None):
        if not gamma > 0:
            raise UserError(f"gamma={gamma}: min-SNR weights need a gamma above 0, usually 5.")
        self.gamma, self.zero_terminal = gamma, zero_terminal

    def reach(self, sigma_max: float) -> None:
        """Chooses the form for zero-terminal SNR, unless `zero_terminal` was given."""
        if self.zero_terminal is None:
            self.zero_terminal = sigma_max > PURE_NOISE

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """c_out^2 min(S, gamma), or with `zero_terminal` c_out^2 min(S + 1, gamma): (B,)."""
        snr = sigma**-2 + float(self.zero_terminal or False)
        return coefficients.c_out**2 * snr.clamp(max=self.gamma)


@register
class LearnedUncertainty(Weighting, nn.Module):
    """loss / e^u + u, where u(sigma) learns ln of the loss at sigma (Karras et al. 2024, eq. 14 and 15; Kendall 2018).

    At its optimum u is ln of the expected loss, so that every noise level contributes a loss of 1, and no level's
    gradient drowns the others', whatever the parameterization. u is linear in `features` cosines of ln(sigma) / 4 with
    random frequencies and phases, and starts at 0. It is trained with the network and isn't needed for sampling. `base`
    is another weighting, which is applied first.

    The logged loss is then about 1 + mean u. It may be negative, and can only be compared with losses of the same
    kind.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, features: int = 128, base: Weighting | None = None):
        nn.Module.__init__(self)
        if features < 1:
            raise UserError(f"features={features}: learned uncertainty needs at least 1, usually 128.")
        self.base = base or Uniform()
        self.register_buffer("frequency", 2 * math.pi * torch.randn(features))
        self.register_buffer("phase", 2 * math.pi * torch.rand(features))
        self.slope = nn.Parameter(torch.zeros(features))

    def reach(self, sigma_max: float) -> None:
        """Passes `sigma_max` on to the base."""
        self.base.reach(sigma_max)

    def u(self, sigma: Tensor) -> Tensor:
        """ln of the expected loss (B,) at `sigma` (B,)."""
        angle = sigma.log()[:, None] / 4 * self.frequency + self.phase  # (B, features)
        return (math.sqrt(2) * angle.cos() * self.slope).sum(1)  # no matrix product: float32 under autocast

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The weight of the base times e^-u: (B,)."""
        return self.base.weight(sigma, coefficients) * (-self.u(sigma)).exp()

    def weighted(self, loss: Tensor, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The weighted loss plus u: (B,)."""
        return super().weighted(loss, sigma, coefficients) + self.u(sigma)
