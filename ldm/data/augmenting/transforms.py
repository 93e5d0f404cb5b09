"""Non-leaking augmentation: random geometric transforms, each described by a label.

Karras et al. 2020 (ADA) choose the transforms; Karras et al. 2022 (EDM, appendix F.2) make the parameters a condition
of the network, which is zero when images are generated. The augmentation then doesn't leak into generated images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.randomness import normal, uniform

LABELS = 11
SHIFT = 0.125  # of the side: the largest whole translation, and the standard deviation of the fractional one
OCTAVES = 0.2  # the standard deviation of the binary logarithm of both kinds of scaling


def parameters(position: Tensor, probability: float, seed: int = 0) -> Tensor:
    """The labels (B, 11) of random transforms for the images at `position` (B,), by (seed, position).

    Columns: flip to the left or right (0 or 1, one half each) and upside down; whole translation to the right and down,
    -1 to 1 in units of an eighth of the side; binary logarithm of isotropic scaling in units of 0.2; rotation by r as
    cos r - 1 and sin r; anisotropic scaling by a along the angle b as a cos b and a sin b; fractional translation in
    units of an eighth of the side. The flip to the left or right is always random; each of the others happens with the
    given probability, and is 0 otherwise.
    """

    def chosen(name: str) -> Tensor:
        """1 for samples that get the transformation `name`, else 0: (B,)."""
        return (uniform(seed, f"augment {name}", position) < probability).float()  # (B,)

    def angle(name: str) -> Tensor:
        """An angle (B,) in radians, uniform in [-pi, pi)."""
        return math.pi * (2 * uniform(seed, f"{name} angle", position) - 1)

    coin = (uniform(seed, "flips", position, (2,)) < 0.5).float()  # (B, 2)
    whole = (2 * uniform(seed, "whole shift", position, (2,)) - 1) * chosen("whole shift")[:, None]
    scale = normal(seed, "scaling", position) * chosen("scaling")
    turn = angle("rotation") * chosen("rotation")
    stretch, along = normal(seed, "stretch", position) * chosen("stretch"), angle("stretch")
    shift = normal(seed, "shift", position, (2,)) * chosen("shift")[:, None]
    columns = [coin[:, 0], coin[:, 1] * chosen("upside down"), whole[:, 0], whole[:, 1], scale]
    columns += [turn.cos() - 1, turn.sin(), stretch * along.cos(), stretch * along.sin(), shift[:, 0], shift[:, 1]]
    return torch.stack(columns, 1)


def settled(labels: Tensor, height: int, width: int) -> Tensor:
    """The labels, with the whole translations rounded to whole pixels."""
    side = labels.new_tensor([width, height]) * SHIFT  # (2,)
    labels = labels.clone()
    labels[:, 2:4] = torch.where(side >= 0.5, (labels[:, 2:4] * side).round() / side, 0)
    return labels


def transform(images: Tensor, label: Tensor, nearest: bool = False) -> Tensor:
    """Images (C, H, W) of any type, transformed by `label` (11,); beyond the edges the image is reflected.

    Flips and whole translations move pixels as they are. The rest is one bicubic interpolation, in float32, or the
    nearest pixel for maps.
    """
    height, width = images.shape[1:]
    axes = [axis for axis, flips in ((2, label[0]), (1, label[1])) if flips]
    moved = images.flip(axes) if axes else images
    right, down = round(float(label[2]) * SHIFT * width), round(float(label[3]) * SHIFT * height)
    if right or down:
        columns, rows = (_reflected(torch.arange(n) - by, n) for n, by in ((width, right), (height, down)))
        moved = moved[:, rows][:, :, columns]
    if not label[4:].any():
        return moved
    grid = F.affine_grid(_inverse(label, height, width)[None, :2], [1, 1, height, width], align_corners=False)
    if nearest:
        return _nearest(moved, grid[0])
    shown = F.grid_sample(moved[None].float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return shown[0]


def _inverse(label: Tensor, height: int, width: int) -> Tensor:
    """The matrix (3, 3) from coordinates in the result to those in the image, both from -1 to 1."""
    scale, turn_cos, turn_sin = 2.0 ** (OCTAVES * float(label[4])), float(label[5]) + 1, float(label[6])
    amount, along = math.hypot(float(label[7]), float(label[8])), math.atan2(float(label[8]), float(label[7]))
    stretch = 2.0 ** (OCTAVES * amount)
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))
    rotation = torch.tensor([[turn_cos, turn_sin, 0], [-turn_sin, turn_cos, 0], [0, 0, 1]])
    axis = torch.tensor([[math.cos(along), math.sin(along), 0], [-math.sin(along), math.cos(along), 0], [0, 0, 1.0]])
    along_axis = axis.T @ torch.diag(torch.tensor([1 / stretch, stretch, 1])) @ axis
    shift = torch.eye(3)
    shift[0, 2], shift[1, 2] = -float(label[9]) * SHIFT * width, -float(label[10]) * SHIFT * height
    shrink = torch.diag(torch.tensor([1 / scale, 1 / scale, 1]))
    return torch.linalg.inv(to_pixels) @ shrink @ rotation @ along_axis @ shift @ to_pixels


def _reflected(index: Tensor, n: int) -> Tensor:
    """Coordinates reflected into 0 to n - 1, with edges repeated: -1 becomes 0, and n becomes n - 1."""
    index = index % (2 * n)
    return torch.where(index < n, index, 2 * n - 1 - index)


def _nearest(images: Tensor, grid: Tensor) -> Tensor:
    """The nearest pixels of (C, H, W), of any type, at the coordinates (H, W, 2) from -1 to 1."""
    height, width = images.shape[1:]
    columns, rows = ((grid[..., i] + 1) * n / 2 - 0.5 for i, n in ((0, width), (1, height)))
    columns, rows = (_reflected(place.round().long(), n) for place, n in ((columns, width), (rows, height)))
    return images[:, rows, columns]
