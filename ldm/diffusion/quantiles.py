"""Quantiles of the Beta distribution.

SciPy has them (`scipy.special.betaincinv`), but samplers need nothing but torch, and have to work where a model is used
without the libraries of training and evaluation. So they are computed here.
"""

import math

import torch
from torch import Tensor

_POINTS = 2**16


def beta_quantile(u: Tensor, a: float, b: float) -> Tensor:
    """The inverse of the distribution function of Beta(a, b), a and b at least 1/2, at `u` (N,) in [0, 1].

    The result is (N,) float64 on the CPU, accurate to about 1e-7. In w with x = sin^2(w) the density is
    2 sin^(2a-1)(w) cos^(2b-1)(w), which is bounded for a, b >= 1/2, so that the midpoint rule integrates it well. The
    distribution function is tabulated that way and inverted by linear interpolation.
    """
    step = math.pi / 2 / _POINTS
    w = (torch.arange(_POINTS, dtype=torch.float64, device="cpu") + 0.5) * step
    mass = (w.sin() ** (2 * a - 1) * w.cos() ** (2 * b - 1)).cumsum(0)  # (_POINTS,)
    mass = torch.cat([mass.new_zeros(1), mass / mass[-1]])  # at w = 0, step, 2 step, ...
    u = u.double().cpu()
    low = torch.searchsorted(mass, u, right=True).sub(1).clamp(0, _POINTS - 1)
    share = (u - mass[low]) / (mass[low + 1] - mass[low])
    return ((low + share) * step).sin() ** 2
