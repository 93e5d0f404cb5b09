"""Grids: the noise levels that a sampler visits, and how they are spaced.

A grid is computed from the shares of the way from noise to image that remain at the start of each step: 1 at the
beginning, 0 at the image. A spacing maps these shares to sigma.
"""

import math

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion.quantiles import beta_quantile
from ldm.diffusion.schedule import Schedule


class Grids:
    """The spacings that every model has, for noise levels between `sigma_min` and `sigma_max`."""

    sigma_min: float
    sigma_max: float
    spacings: tuple[str, ...] = ("uniform", "karras", "exponential", "beta", "kl_optimal")
    # The spacings whose last level above 0 is sigma_min. The others have steps that end at 0 themselves.
    to_sigma_min: tuple[str, ...] = ("karras", "exponential", "kl_optimal", "linspace")

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

    # Each spacing maps the shares `left` (n,) of the way that remain to sigmas (n,), for a model whose highest noise
    # level is `top`. The whole way takes `steps` steps. `grid` applies the shift.

    def _uniform(self, left: Tensor, top: float, steps: int) -> Tensor:
        return self._karras(left, top, steps)

    def _karras(self, left: Tensor, top: float, steps: int) -> Tensor:
        return between(self.sigma_min ** (1 / 7), top ** (1 / 7), left) ** 7

    def _exponential(self, left: Tensor, top: float, steps: int) -> Tensor:
        return between(math.log(self.sigma_min), math.log(top), left).exp()

    def _kl_optimal(self, left: Tensor, top: float, steps: int) -> Tensor:
        return between(math.atan(self.sigma_min), math.atan(top), left).tan()

    def _beta(self, left: Tensor, top: float, steps: int) -> Tensor:
        return self._at(beta_quantile(left, 0.6, 0.6), top)

    def _at(self, tau: Tensor, top: float) -> Tensor:
        """sigma at the share `tau` of the model's time from sigma_min to `top`; the time of this base class is
        karras'.
        """
        return between(self.sigma_min ** (1 / 7), top ** (1 / 7), tau) ** 7


class TimestepGrids(Grids):
    """The spacings of models with a table of timesteps, `schedule`, in which a grid starts at a whole timestep."""

    spacings = (*Grids.spacings, "leading", "linspace", "table", "lcm")
    schedule: Schedule

    def _uniform(self, left: Tensor, top: float, steps: int) -> Tensor:
        """From the last timestep down by T / steps ("trailing" in Lin et al. 2023, table 2), rounded to whole
        timesteps.
        """
        return self._sigmas(left, (self._timestep(top) + 1) * left - 1)

    def _leading(self, left: Tensor, top: float, steps: int) -> Tensor:
        """Multiples of T // steps, as some models expect ("leading"); the noisiest timesteps are left out."""
        if self.schedule.zero_terminal_snr:
            raise UserError("a zero-terminal-SNR model is sampled from its last timestep on: use another spacing.")
        return self._sigmas(left, self.schedule.timesteps // steps * (steps * left - 1))

    def _lcm(self, left: Tensor, top: float, steps: int) -> Tensor:
        """Evenly spaced timesteps of the 50 at which latent consistency models are distilled, the last one first
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
        """sigma at the timesteps `t` (n,), rounded to whole ones if the grid starts at the highest noise level; a grid
        of `strength` below 1 may start between two timesteps."""
        return self.schedule.sigma(t.round() if _is_whole(left) else t)


def _left(steps: int, strength: float, to_sigma_min: bool) -> Tensor:
    """The shares (n,) float64 of the way that remain at the start of each step, evenly spaced from `strength` down.

    The last one is the length of a step, or 0 with `to_sigma_min`, since another step then leads to sigma = 0.
    """
    n = min(steps, math.ceil(strength * steps - 1e-9)) if strength > 1e-9 else 0
    i = torch.arange(n, dtype=torch.float64, device="cpu")
    return strength * (1 - i / max(1, n - 1 if to_sigma_min else n))


def _is_whole(left: Tensor) -> bool:
    """Whether the grid starts at the highest noise level."""
    return left[:1].tolist() == [1.0]


def between(low: float, high: float, share: Tensor) -> Tensor:
    """The points (n,) at the shares (n,) of the way from `low` to `high`."""
    return low + share * (high - low)
