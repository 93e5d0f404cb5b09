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
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.diffusion.quantiles import beta_quantile
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


class Parameterization:
    """The base of all parameterizations. Training and sampling use noise levels in [`sigma_min`, `sigma_max`]."""

    sigma_min: float
    sigma_max: float
    spacings: tuple[str, ...] = ("uniform", "karras", "exponential", "beta", "kl_optimal")
    to_sigma_min: tuple[str, ...] = (
        "karras",
        "exponential",
        "kl_optimal",
        "linspace",
    )  # their last level is sigma_min

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

    def grid(self, steps: int, spacing: str | None = None, shift: float = 1.0, strength: float = 1.0) -> Tensor:
        """Noise levels for a sampler: (steps + 1,) float64 on the CPU, strictly falling from sigma_max to 0.

        - `uniform`, the default, is the parameterization's own spacing.
        - `karras` is eq. 5 of Karras et al. 2022 with rho = 7.
        - `exponential` has equal steps of ln sigma.
        - `kl_optimal` has equal steps of arctan sigma (Sabour et al. 2024, eq. 17).
        - `beta` puts the model's own time at the quantiles of Beta(0.6, 0.6), dense at both ends (Lee et al. 2024,
          "Beta sampling is all you need").

        Variance-preserving models also have `leading` and `linspace`, under the names of diffusers, `table`, which is
        all T timesteps, and `lcm`, the subset of every (T // 50)th timestep that LCMScheduler takes.

        `shift` k multiplies every sigma by k, which for flow is SD3's t' = k t / (1 + (k - 1) t); k = sqrt(m / n) moves
        a model from n pixels to m (Esser et al. 2024, eq. 23). The grid starts at sigma_max whatever the shift.

        With a `strength` below 1, for image to image, it is the last share `strength` of the grid: ceil(strength steps)
        steps of the same spacing, from exactly the noise level at that share, whatever `steps`, to 0. For flow that
        level is at t = strength. Where strength steps is a whole number and the spacing doesn't end at sigma_min, these
        are the last levels of the whole grid.
        """
        spacing = spacing or "uniform"
        if spacing not in self.spacings:
            name = type(self).__name__
            raise UserError(f"{name} has no spacing '{spacing}'.{did_you_mean(spacing, self.spacings)}")
        if steps < 1 or not shift > 0:
            raise UserError(f"steps={steps}, shift={shift}: sampling needs at least one step and a shift above 0.")
        if shift != 1 and spacing in ("leading", "table", "lcm"):
            raise UserError(f"spacing '{spacing}' can't be shifted: use another spacing, or shift=1.")
        left = _left(steps, strength, spacing in self.to_sigma_min)
        sigmas = shift * getattr(self, f"_{spacing}")(left, self.sigma_max / shift, steps)
        if strength == 1 and spacing not in ("leading", "lcm"):
            sigmas[0] = self.sigma_max
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])  # (steps + 1,)
        if not (sigmas.diff() < 0).all():
            raise UserError(
                f"{type(self).__name__} can't tell {steps} steps with shift={shift:g} apart: use fewer steps."
            )
        return sigmas

    # Each spacing gives sigmas (n,) for the shares `left` (n,) of the way from noise to image that are still to go, for
    # a model whose highest noise level is `top`. The whole way takes `steps` steps. `grid` applies the shift.

    def _uniform(self, left: Tensor, top: float, steps: int) -> Tensor:
        return self._karras(left, top, steps)

    def _karras(self, left: Tensor, top: float, steps: int) -> Tensor:
        return _between(self.sigma_min ** (1 / 7), top ** (1 / 7), left) ** 7

    def _exponential(self, left: Tensor, top: float, steps: int) -> Tensor:
        return _between(math.log(self.sigma_min), math.log(top), left).exp()

    def _kl_optimal(self, left: Tensor, top: float, steps: int) -> Tensor:
        return _between(math.atan(self.sigma_min), math.atan(top), left).tan()

    def _beta(self, left: Tensor, top: float, steps: int) -> Tensor:
        return self._at(beta_quantile(left, 0.6, 0.6), top)

    def _at(self, tau: Tensor, top: float) -> Tensor:
        """sigma at the share `tau` of the model's own time between sigma_min and `top`; here that of `karras`."""
        return _between(self.sigma_min ** (1 / 7), top ** (1 / 7), tau) ** 7


def _left(steps: int, strength: float, to_sigma_min: bool) -> Tensor:
    """The shares (n,) float64 of the way that are still to go where each step begins: evenly spaced from `strength`
    down to the length of the last step, or down to 0 with `to_sigma_min`, since one more step then leads to sigma =
    0."""
    n = min(steps, math.ceil(strength * steps - 1e-9)) if strength > 1e-9 else 0
    i = torch.arange(n, dtype=torch.float64, device="cpu")
    return strength * (1 - i / max(1, n - 1 if to_sigma_min else n))


def _is_whole(left: Tensor) -> bool:
    """Whether sampling starts at the beginning, at the highest noise level."""
    return left[:1].tolist() == [1.0]


def _between(low: float, high: float, share: Tensor) -> Tensor:
    return low + share * (high - low)


class VariancePreserving(Parameterization):
    """The base of models with a table of timesteps; `schedule` is by default Stable Diffusion's."""

    spacings = (*Parameterization.spacings, "leading", "linspace", "table", "lcm")

    def __init__(self, schedule: Schedule | None = None):
        self.schedule = schedule or Schedule()
        self.sigma_min, self.sigma_max = self.schedule.sigmas[0].item(), self.schedule.sigmas[-1].item()

    def uniform(self, u: Tensor) -> Tensor:
        """sigma of a whole timestep of the table, each equally likely."""
        return self.schedule.sigma((u * self.schedule.timesteps).floor())

    def _uniform(self, left: Tensor, top: float, steps: int) -> Tensor:
        """From the last timestep down by T / steps ("trailing" in Lin et al. 2023, table 2), rounded to whole ones."""
        return self._sigmas(left, (self._timestep(top) + 1) * left - 1)

    def _leading(self, left: Tensor, top: float, steps: int) -> Tensor:
        """Multiples of T // steps. It leaves out the noisiest timesteps, and is there for models that are used with
        it."""
        if self.schedule.zero_terminal_snr:
            raise UserError("a zero-terminal-SNR model is sampled from its last timestep on: use another spacing.")
        return self._sigmas(left, self.schedule.timesteps // steps * (steps * left - 1))

    def _lcm(self, left: Tensor, top: float, steps: int) -> Tensor:
        """Evenly spaced ones of the 50 timesteps at which latent consistency models are distilled, the last one first
        (Luo et al. 2023; diffusers' LCMScheduler)."""
        gone = ((1 - left) * 50 + 1e-9).floor() if _is_whole(left) else (1 - left) * 50
        return self.schedule.sigma((50 - gone) * (self.schedule.timesteps // 50) - 1)

    def _linspace(self, left: Tensor, top: float, steps: int) -> Tensor:
        return self._sigmas(left, self._timestep(top) * left)

    def _at(self, tau: Tensor, top: float) -> Tensor:
        return self.schedule.sigma(tau * self._timestep(top))

    def _table(self, left: Tensor, top: float, steps: int) -> Tensor:
        if steps != self.schedule.timesteps:
            raise UserError(
                f"spacing 'table' takes all {self.schedule.timesteps} timesteps: set steps={self.schedule.timesteps}, "
                "or use the spacing 'uniform'."
            )
        return self.schedule.sigmas.flip(0) if _is_whole(left) else self.schedule.sigma(steps * left - 1)

    def _timestep(self, sigma: float) -> float:
        return self.schedule.timestep(torch.tensor([sigma], dtype=torch.float64, device="cpu")).item()

    def _sigmas(self, left: Tensor, t: Tensor) -> Tensor:
        """sigma at the timesteps `t` (n,), rounded to whole ones if sampling starts at the beginning; a part of the way
        may start between two timesteps."""
        return self.schedule.sigma(t.round() if _is_whole(left) else t)


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
        t = _between(self.sigma_min / (1 + self.sigma_min), top / (1 + top), tau)
        return t / (1 - t)


@register
class EDM(Parameterization):
    """The preconditioning of Karras et al. 2022 (table 1), with which the input and target of the network have variance
    1.

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
