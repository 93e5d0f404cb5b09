"""How noise levels are drawn in training: the inverse of a distribution function maps a uniform number u to sigma.

`u` (B,) lies in (0, 1); the result (B,) is clamped to the parameterization's [sigma_min, sigma_max].

Every distribution has a `shift` k, which multiplies sigma. With m pixels instead of n, noise hides as much of an image
only at a level k = sqrt(m / n) times as high, since neighbouring pixels carry the same information (Esser et al. 2024,
section 5.3.2, eq. 23). Grids for sampling have the same number.
"""

import math

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.diffusion.parameterization import EDM, Parameterization


class TrainingNoise:
    """The base of a distribution of training noise."""

    def __init__(self, shift: float = 1.0):
        if not shift > 0:
            raise UserError(f"shift={shift}: has to be above 0, such as sqrt(m / n) from n pixels to m.")
        self.shift = shift

    def sigma(self, u: Tensor, parameterization: Parameterization) -> Tensor:
        """The noise levels (B,) at the quantiles `u` (B,)."""
        sigma = self.shift * self._sigma(u, parameterization)
        return sigma.clamp(parameterization.sigma_min, parameterization.sigma_max)

    def _sigma(self, u: Tensor, parameterization: Parameterization) -> Tensor:
        raise NotImplementedError


@register
class UniformTimesteps(TrainingNoise):
    """Every timestep of the table is equally likely (Ho et al. 2020, algorithm 1); for flow t is uniform in (0, 1)."""

    def __init__(self, shift: float = 1.0):
        super().__init__(shift)

    def _sigma(self, u: Tensor, parameterization: Parameterization) -> Tensor:
        return parameterization.uniform(u)


@register
class LogNormal(TrainingNoise):
    """ln sigma ~ N(mean, std^2) (Karras et al. 2022, 2024).

    The default is EDM2's N(-0.4, 1) for latents of standard deviation 0.5, moved by ln 2 to latents of 1. Pixels in
    [-1, 1] take EDM's N(-1.2, 1.2^2) with sigma_data 0.5.
    """

    def __init__(self, mean: float = 0.29, std: float = 1.0, shift: float = 1.0):
        super().__init__(shift)
        if not std > 0:
            raise UserError(f"std={std}: the spread of training noise has to be above 0.")
        self.mean, self.std = mean, std

    def _sigma(self, u: Tensor, parameterization: Parameterization) -> Tensor:
        return (self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * u - 1)).exp()


@register
class LogitNormal(TrainingNoise):
    """logit t ~ N(mean, std^2) for t = sigma / (1 + sigma), then t shifted as in sampling (Esser et al. 2024, SD3).

    Since ln sigma = logit t, that is LogNormal(mean, std, shift).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0):
        super().__init__(shift)
        self._in_sigma = LogNormal(mean, std)

    def _sigma(self, u: Tensor, parameterization: Parameterization) -> Tensor:
        return self._in_sigma._sigma(u, parameterization)


def default_noise(parameterization: Parameterization) -> TrainingNoise:
    """The distribution in the paper of the parameterization: LogNormal for EDM, uniform timesteps for all others."""
    return LogNormal() if isinstance(parameterization, EDM) else UniformTimesteps()


def resolution_shift(pixels: float, base_pixels: float) -> float:
    """sqrt(m / n): the shift at which noise hides as much of m = `pixels` as it did of n = `base_pixels` (Esser et al.
    2024, eq. 23)."""
    return math.sqrt(pixels / base_pixels)
