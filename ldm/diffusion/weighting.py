"""How much each noise level counts in the loss. The weight multiplies the loss on the network's raw target."""

from torch import Tensor

from ldm.diffusion.parameterization import Coefficients
from ldm.errors import UserError
from ldm.registry import register


class Weighting:
    """The base of loss weights."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        """The weight (B,) of the loss at `sigma` (B,)."""
        raise NotImplementedError


@register
class Uniform(Weighting):
    """Every noise level alike: DDPM's simple loss for eps, EDM's own lambda = 1 / c_out^2 for EDM."""

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        return sigma.new_ones(sigma.shape)


@register
class MinSNR(Weighting):
    """min(S, gamma) on the error of x0, S = 1 / sigma^2 (Hang et al. 2023), so c_out^2 min(S, gamma) on the raw target.

    For eps that is min(1, gamma / S), for x0 min(S, gamma), for v min(S, gamma) / (S + 1).

    v's weight goes to 0 with S: a zero-terminal-SNR model would hardly be trained where its sampling starts. With
    `zero_terminal` S + 1 stands in S's place: for v min(S + 1, gamma) / (S + 1), which is 1 at S = 0.
    """

    def __init__(self, gamma: float = 5.0, zero_terminal: bool = False):
        if not gamma > 0:
            raise UserError(f"gamma={gamma}: min-SNR weights need a gamma above 0, usually 5.")
        self.gamma, self.zero_terminal = gamma, zero_terminal

    def weight(self, sigma: Tensor, coefficients: Coefficients) -> Tensor:
        snr = sigma**-2 + float(self.zero_terminal)
        return coefficients.c_out**2 * snr.clamp(max=self.gamma)
