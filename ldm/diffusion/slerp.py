"""The way from one point to another that keeps to the sphere."""

import torch
from torch import Tensor

_TINY, _PARALLEL = 1e-8, 1e-4


def slerp(a: Tensor, b: Tensor, t: Tensor | float, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Spherical interpolation from `a` (t = 0) to `b` (t = 1), of the vectors that lie along `dims` (Shoemake 1985).

    Normal noise and what resembles it lives near a sphere; the straight line between two of its points cuts through
    the inside, where nothing was trained. Directions go along the great circle, lengths go linearly. Where the two are
    nearly parallel, or one is zero, it is the straight line.
    """
    length_a, length_b = (torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (a, b))
    unit_a, unit_b = a / length_a.clamp(min=_TINY), b / length_b.clamp(min=_TINY)
    angle = (unit_a * unit_b).sum(dims, keepdim=True).clamp(-1, 1).arccos()
    sine = angle.sin()
    direction = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine.clamp(min=_TINY)
    on_sphere = direction * ((1 - t) * length_a + t * length_b)
    straight = (1 - t) * a + t * b
    return on_sphere.where((sine > _PARALLEL) & (length_a > _TINY) & (length_b > _TINY), straight)
