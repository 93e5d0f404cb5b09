"""How much each noise level counts in the loss. The weight multiplies the loss on the network's raw target."""

import math

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.diffusion.parameterization import Coefficients

PURE_NOISE = 100.0  # sigma from which on nothing of whitened data is left: S below 1e-4


class Weighting:
    """The base of loss weights."""

    def reach(self, sigma_max: float) -> None:
        """Learns how noisy it gets, once, from the denoiser whose loss it weights."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The weight (B,) of the loss at `sigma` (B,)."""
        raise NotImplementedError

    def weighted(self, loss: Tensor, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """What is minimised, (B,), of the `loss` (B,) on the raw target."""
        return self.weight(sigma, coefficients) * loss


@register
class Uniform(Weighting):
    """Every noise level alike: DDPM's simple loss for eps, EDM's own lambda = 1 / c_out^2 for EDM."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        return sigma.new_ones(sigma.shape)


@register
class MinSNR(Weighting):
    """min(S, gamma) on the error of x0, S = 1 / sigma^2 (Hang et al. 2023), so c_out^2 min(S, gamma) on the raw target.

    For eps that is min(1, gamma / S), for x0 min(S, gamma), for v min(S, gamma) / (S + 1).

    All but eps's weight go to 0 with S: a model that goes to pure noise would hardly be trained where its sampling
    starts. With `zero_terminal` S + 1 stands in S's place: for v min(S + 1, gamma) / (S + 1), which is 1 at S = 0. That
    is the default (None) for models that do, with zero-terminal SNR, a cosine schedule or rectified flow; false takes
    the published form for them too.
    """

    def __init__(self, gamma: float = 5.0, zero_terminal: bool | None = None):
        if not gamma > 0:
            raise UserError(f"gamma={gamma}: min-SNR weights need a gamma above 0, usually 5.")
        self.gamma, self.zero_terminal = gamma, zero_terminal

    def reach(self, sigma_max: float) -> None:
        if self.zero_terminal is None:
            self.zero_terminal = sigma_max > PURE_NOISE

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        snr = sigma**-2 + float(self.zero_terminal or False)
        return coefficients.c_out**2 * snr.clamp(max=self.gamma)


@register
class LearnedUncertainty(Weighting, nn.Module):
    """loss / e^u + u, where u(sigma) learns ln of the loss at sigma (Karras et al. 2024, eq. 14 and 15; Kendall 2018).

    At its best u is ln of the expected loss, so that every noise level contributes a loss of 1 and the gradient of none
    drowns that of the others, whatever the parameterization. u is linear in `features` cosines of ln(sigma) / 4, of
    random frequency and phase, and 0 at first. It is trained with the network and not needed to sample. `base`, another
    weighting, multiplies the loss before.

    What is logged as the loss is then near 1 + mean u, may be negative, and compares only with its like.
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
        self.base.reach(sigma_max)

    def u(self, sigma: Tensor) -> Tensor:
        """ln of the loss that is expected at `sigma` (B,), (B,)."""
        angle = sigma.log()[:, None] / 4 * self.frequency + self.phase  # (B, features)
        return (math.sqrt(2) * angle.cos() * self.slope).sum(1)  # no matrix product: float32 under autocast

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        return self.base.weight(sigma, coefficients) * (-self.u(sigma)).exp()

    def weighted(self, loss: Tensor, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        return super().weighted(loss, sigma, coefficients) + self.u(sigma)
