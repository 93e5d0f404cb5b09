"""Spherical interpolation between tensors."""

import torch
from torch import Tensor

_TINY, _PARALLEL = 1e-8, 1e-4


def slerp(a: Tensor, b: Tensor, t: Tensor | float, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Spherical interpolation from `a` (t = 0) to `b` (t = 1) of the vectors along `dims` (Shoemake 1985).

    `a`, `b` and `t` are broadcast against each other. Normal noise, and what resembles it, lies near a sphere; a
    straight line between two of its points leads through the inside, where no model was trained. Directions follow the
    great circle, lengths change linearly. Vectors that are nearly parallel, or zero, are interpolated linearly.
    """
    length_a, length_b = (torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (a, b))
    unit_a, unit_b = a / length_a.clamp(min=_TINY), b / length_b.clamp(min=_TINY)
    angle = (unit_a * unit_b).sum(dims, keepdim=True).clamp(-1, 1).arccos()
    sine = angle.sin()
    direction = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine.clamp(min=_TINY)
    on_sphere = direction * ((1 - t) * length_a + t * length_b)
    straight = (1 - t) * a + t * b
    return on_sphere.where((sine > _PARALLEL) & (length_a > _TINY) & (length_b > _TINY), straight)
