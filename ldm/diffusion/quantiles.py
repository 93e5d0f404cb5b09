"""The quantiles of the Beta distribution, without scipy."""

import math

import torch
from torch import Tensor

_POINTS = 2**16


def beta_quantile(u: Tensor, a: float, b: float) -> Tensor:
    """The inverse of Beta(a, b)'s distribution function at `u` (N,) in [0, 1], float64, to about 1e-7.

    With x = sin^2(w) the density 2 sin^(2a-1)(w) cos^(2b-1)(w) is bounded from a, b = 1/2 on: midpoints add up well.
    """
    step = math.pi / 2 / _POINTS
    w = (torch.arange(_POINTS, dtype=torch.float64, device="cpu") + 0.5) * step
    mass = (w.sin() ** (2 * a - 1) * w.cos() ** (2 * b - 1)).cumsum(0)  # (_POINTS,)
    mass = torch.cat([mass.new_zeros(1), mass / mass[-1]])  # at w = 0, step, 2 step, ...
    u = u.double().cpu()
    low = torch.searchsorted(mass, u, right=True).sub(1).clamp(0, _POINTS - 1)
    share = (u - mass[low]) / (mass[low + 1] - mass[low])
    return ((low + share) * step).sin() ** 2
