"""What a network predicts: a function of sigma that gives four numbers.

Every noisy image is x = x0 + sigma noise, and a network becomes a denoiser by

    D(x, sigma) = c_skip x + c_out net(c_in x, c_noise, cond)

so the network's own target is (x0 - c_skip x) / c_out. This is the notation of Karras et al. 2022 (EDM, eq. 7); DDPM's
eps, v (Salimans and Ho 2022) and rectified flow (Liu et al. 2022) are other choices of the four numbers. Samplers know
only D.

Variance-preserving models have x = x_t / sqrt(abar), rectified flow has x = z_t / (1 - t) with sigma = t / (1 - t).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.diffusion.grids import Grids, TimestepGrids, between
from ldm.diffusion.schedule import Schedule


class Coefficients(NamedTuple):
    """The four numbers of the definition above, each (B,) in the dtype of sigma, float32 or float64."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is float64: in half precision, sums of x0 and sigma noise lose the noise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def broadcast(c: Tensor, x: Tensor) -> Tensor:
    """`c` (B,) as (B, 1, 1, 1) on the device of `x` (B, C, H, W), to be multiplied with it."""
    return send(c, x.device).view(-1, *[1] * (x.ndim - 1))


class Parameterization(Grids):
    """The base of all parameterizations. Training and sampling use noise levels in [`sigma_min`, `sigma_max`]."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The four numbers at `sigma` (B,)."""
        raise NotImplementedError

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should return for `x0` and `noise` (B, C, H, W) at `sigma` (B,): (x0 - c_skip x) / c_out,
        written without the cancellation in that difference."""
        raise NotImplementedError

    def uniform(self, u: Tensor) -> Tensor:
        """sigma (B,) at the quantiles `u` (B,) in (0, 1) of uniformly distributed timesteps."""
        raise UserError(f"{type(self).__name__} has no uniform timesteps: train with LogNormal or LogitNormal noise.")


class VariancePreserving(TimestepGrids, Parameterization):
    """The base of models with a table of timesteps; `schedule` is by default Stable Diffusion's."""

    def __init__(self, schedule: Schedule | None = None):
        self.schedule = schedule or Schedule()
        self.sigma_min, self.sigma_max = self.schedule.sigmas[0].item(), self.schedule.sigmas[-1].item()

    def uniform(self, u: Tensor) -> Tensor:
        """sigma (B,) at a whole timestep of the table, each equally likely for uniform `u` (B,)."""
        return self.schedule.sigma((u * self.schedule.timesteps).floor())


@register
class Eps(VariancePreserving):
    """The network predicts the noise (Ho et al. 2020; Stable Diffusion 1)."""

    def __init__(self, schedule: Schedule | None = None):
        super().__init__(schedule)
        if self.schedule.zero_terminal_snr:
            raise UserError("a zero-terminal-SNR schedule starts sampling at pure noise: use V or X0, not Eps.")

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Parameterization.coefficients`."""
        c_in = torch.rsqrt(1 + sigma**2)
        return Coefficients(torch.ones_like(sigma), -sigma, c_in, self.schedule.timestep(sigma))

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The noise."""
        return noise


@register
class X0(VariancePreserving):
    """The network predicts the clean image."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Parameterization.coefficients`."""
        c_in = torch.rsqrt(1 + sigma**2)
        return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), c_in, self.schedule.timestep(sigma))

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The image x0."""
        return x0


@register
class V(VariancePreserving):
    """The network predicts v = alpha noise - s x0, with alpha = 1 / sqrt(1 + sigma^2), s = sigma alpha.

    Salimans, Ho 2022 (appendix D); Stable Diffusion 2.
    """

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Parameterization.coefficients`."""
        alpha = torch.rsqrt(1 + sigma**2)
        return Coefficients(1 / (1 + sigma**2), -sigma * alpha, alpha, self.schedule.timestep(sigma))

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """v = (noise - sigma x0) / sqrt(1 + sigma^2)."""
        sigma = broadcast(sigma, x0)
        return (noise - sigma * x0) * torch.rsqrt(1 + sigma**2)


@register
class Flow(Parameterization):
    """Rectified flow: z_t = (1 - t) x0 + t noise, the network predicts noise - x0 (Liu et al. 2022; SD3).

    t = 1 would mean sigma = infinity, so t is capped at `t_max`, by default 0.999, which is sigma = 999.
    """

    def __init__(self, t_max: float = 0.999):
        if not 0.5 < t_max < 1:
            raise UserError(f"t_max={t_max}: has to lie between 0.5 and 1, such as 0.999.")
        self.sigma_max = t_max / (1 - t_max)
        self.sigma_min = 1 / self.sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Parameterization.coefficients`."""
        # 1 - t would round: in float32 it costs a hundredfold of the target's precision at sigma 999.
        c_skip, t = 1 / (1 + sigma), sigma / (1 + sigma)
        return Coefficients(c_skip, -t, c_skip, 1000 * t)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """noise - x0, the velocity dz/dt."""
        return noise - x0

    def uniform(self, u: Tensor) -> Tensor:
        """sigma of t = u."""
        return u / (1 - u)

    def _uniform(self, left: Tensor, top: float, steps: int) -> Tensor:
        """t = 1, 1 - 1/steps, ..., 1/steps, the first one capped."""
        return (left / (1 - left)).clamp(max=top)

    def _at(self, tau: Tensor, top: float) -> Tensor:
        t = between(self.sigma_min / (1 + self.sigma_min), top / (1 + top), tau)
        return t / (1 - t)


@register
class EDM(Parameterization):
    """The preconditioning of Karras et al. 2022 (table 1): the network's input and target have variance 1.

    `sigma_data` is the standard deviation of the data: 1 for whitened latents; the paper has 0.5, for pixels.
    """

    to_sigma_min = ("uniform", *Parameterization.to_sigma_min)

    def __init__(self, sigma_data: float = 1.0, sigma_min: float = 0.002, sigma_max: float = 80.0):
        if not (sigma_data > 0 and 0 < sigma_min < sigma_max < math.inf):
            values = f"sigma_data={sigma_data}, sigma_min={sigma_min}, sigma_max={sigma_max}"
            raise UserError(f"EDM: {values}: sigma_data has to be above 0, and 0 < sigma_min < sigma_max.")
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Parameterization.coefficients`."""
        d = self.sigma_data
        c_in = torch.rsqrt(sigma**2 + d**2)
        return Coefficients(d**2 / (sigma**2 + d**2), sigma * d * c_in, c_in, sigma.log() / 4)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """(sigma x0 / d - d noise) / sqrt(sigma^2 + d^2), with d = `sigma_data`."""
        sigma, d = broadcast(sigma, x0), self.sigma_data
        return (sigma / d * x0 - d * noise) * torch.rsqrt(sigma**2 + d**2)
