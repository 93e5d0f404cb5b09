"""Random masks for training inpainting, each of which depends only on (seed, position)."""

import torch
from torch import Tensor

from ldm.common.randomness import uniform

BOXES, STROKES = 2, 4  # at most, in one mask
EVERYTHING = 0.05  # the share of masks that mask everything


def random_masks(seed: int, position: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1: one or two boxes, a stroke of a broad brush, or 1 everywhere.

    Half of the masks are boxes of a fifth to four fifths of each side. The others are strokes of up to four straight
    segments, with a brush a tenth to a third as wide as the shorter side.
    """
    kind = uniform(seed, "mask kind", position)[:, None, None]
    shapes = torch.where(kind < 0.5, boxes(seed, position, size), strokes(seed, position, size))
    return (shapes | (kind > 1 - EVERYTHING)).float()[:, None]


def boxes(seed: int, position: Tensor, size: tuple[int, int]) -> Tensor:
    """One or two upright boxes: (B, H, W) bool."""
    u = uniform(seed, "mask boxes", position, (BOXES, 5)).movedim(0, 2)  # (BOXES, 5, B)
    y, x = _pixels(size, position.device)
    masked = torch.zeros(len(position), *size, dtype=torch.bool, device=position.device)
    for i, (top, left, height, width, coin) in enumerate(u[..., None, None]):
        height, width = 0.2 + 0.6 * height, 0.2 + 0.6 * width  # as shares of the sides, (B, 1, 1)
        top, left = top * (1 - height), left * (1 - width)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        masked |= inside if i == 0 else inside & (coin < 0.3)
    return masked


def strokes(seed: int, position: Tensor, size: tuple[int, int]) -> Tensor:
    """A line of straight segments, drawn with a round brush: (B, H, W) bool."""
    u = uniform(seed, "mask strokes", position, (2 * STROKES + 4,))[..., None, None].movedim(0, 1)  # (..., B, 1, 1)
    y, x = _pixels(size, position.device)
    aspect = size[0] / size[1]
    radius = (0.05 + 0.12 * u[0]) * min(1, 1 / aspect)  # in heights
    pieces = 1 + (u[1] * STROKES).floor()
    corners = [(u[2 + 2 * i], u[3 + 2 * i] / aspect) for i in range(STROKES + 1)]
    masked = torch.zeros(len(position), *size, dtype=torch.bool, device=position.device)
    for i in range(STROKES):
        near = _distance(y, x / aspect, corners[i], corners[i + 1]) < radius
        masked |= near & (i < pieces)
    return masked


def _pixels(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The centres of the pixels as shares of the sides: (H, 1), (1, W)."""
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in size)
    return y[:, None], x[None]


def _distance(y: Tensor, x: Tensor, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """The distance (B, H, W) of each pixel from the line segment between `a` and `b`."""
    dy, dx = b[0] - a[0], b[1] - a[1]
    along = ((y - a[0]) * dy + (x - a[1]) * dx) / (dy**2 + dx**2).clamp(min=1e-8)
    along = along.clamp(0, 1)
    return ((y - a[0] - along * dy) ** 2 + (x - a[1] - along * dx) ** 2).sqrt()
