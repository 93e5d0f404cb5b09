"""Canny's edge detector (Canny 1986) in torch: the same on every device, for a whole batch at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.devices import send

_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))  # (rows, columns) at 0, 45, 90 and 135 degrees
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def canny(images: Tensor, low: float = 0.2, high: float = 0.5, sigma: float = 1.0) -> Tensor:
    """Edges (B, 1, H, W), 1 at edges and 0 elsewhere, of `images` (B, C, H, W) in [-1, 1].

    The image is blurred by a 5x5 Gaussian of `sigma` pixels, and Sobel's gradient taken in the channel where it is
    largest. Of its magnitudes only the maxima along the gradient remain, and of these only those above `high`, or above
    `low` and connected to one above `high`. The thresholds are for values in [0, 1] and the plain Sobel operator, whose
    weights sum to 4 on each side.
    """
    with torch.autocast(images.device.type, enabled=False):
        unit = images.float() * 0.5 + 0.5
        dx, dy = gradient(_blurred(unit, sigma))
        magnitude = (dx.square() + dy.square()).sqrt()  # (B, C, H, W)
        magnitude, channel = magnitude.max(1, keepdim=True)  # (B, 1, H, W)
        dx, dy = dx.gather(1, channel), dy.gather(1, channel)
        ridge = magnitude * _is_steepest(magnitude, dx, dy)
        return _connected(ridge > high, ridge > low).float()


def luminance(images: Tensor) -> Tensor:
    """The luminance (B, 1, H, W) in [0, 1] of `images` (B, C, H, W) in [-1, 1] (ITU-R BT.601).

    With one or two channels it is the first one.
    """
    unit = images.float() * 0.5 + 0.5
    if unit.shape[1] < 3:
        return unit[:, :1]
    return (unit[:, :3] * send(torch.tensor([0.299, 0.587, 0.114]), unit.device)[:, None, None]).sum(1, keepdim=True)


def gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives along x and y, each (B, C, H, W)."""
    kernel = send(torch.tensor(_SOBEL, dtype=images.dtype), images.device)
    kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    b, c, h, w = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate").reshape(b * c, 1, h + 2, w + 2)
    dx, dy = F.conv2d(padded, kernels).view(b, c, 2, h, w).unbind(2)
    return dx, dy


def _blurred(images: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-2.0, 3.0, device=images.device)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()  # (5,)
    b, c, h, w = images.shape
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect" if min(h, w) > 2 else "replicate").reshape(
        b * c, 1, h + 4, w + 4
    )
    rows = F.conv2d(padded, weights.view(1, 1, 5, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, 5)).view(b, c, h, w)


def _is_steepest(magnitude: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Where a gradient is at least as large as both neighbours along its direction. Of two equal ones, as at a clean
    step, one remains."""
    octant = torch.round(torch.atan2(dy, dx) * (4 / math.pi)).long() % 4  # (B, 1, H, W), index in _DIRECTIONS
    height, width = magnitude.shape[2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def moved(rows: int, columns: int) -> Tensor:
        """The magnitude (B, 1, H, W) of the neighbour so many rows below and columns to the right."""
        return padded[:, :, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    ahead = torch.cat([moved(r, c) for r, c in _DIRECTIONS], 1).gather(1, octant)
    behind = torch.cat([moved(-r, -c) for r, c in _DIRECTIONS], 1).gather(1, octant)
    return (magnitude > ahead) & (magnitude >= behind)


def _connected(strong: Tensor, weak: Tensor) -> Tensor:
    """The part of `weak` that is connected to `strong`, also diagonally."""
    while True:
        grown = strong
        for _ in range(8):  # several steps before each test of growth, which waits for the device
            grown = (F.max_pool2d(grown.float(), 3, 1, 1) > 0) & weak
        if torch.equal(grown, strong):
            return strong
        strong = grown
