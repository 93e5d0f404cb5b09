"""How near generated images come to training images, because small models on small data memorise."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.common.devices import send, to_host
from ldm.data.storage.table import Table, images_on

RATIO = 1 / 3  # Yoon et al. 2023, section 4
MOST_VALUES = 2**25  # of training images at once


@dataclass(frozen=True)
class Neighbours:
    """For N images: the row (N,) of the nearest training image, and root mean square differences (N,) of pixel values
    in [-1, 1], to that image (`first`) and to the nearest one of other content (`second`)."""

    row: Tensor
    first: Tensor
    second: Tensor

    @property
    def memorised(self) -> Tensor:
        """Whether an image is three times nearer to one training image than to any other (Yoon et al. 2023), (N,).

        Copies of a training image count as one image.
        """
        return self.first < RATIO * self.second


@torch.inference_mode()
def neighbours(images: Tensor, table: Table, chunk: int = 4096, device: torch.device | str = "cpu") -> Neighbours:
    """The neighbours in `table` of `images` (N, C, H, W) in [-1, 1], by the distance of pixels, found on `device`.

    For an image with variants, the nearest variant counts, since a copy of a variant is a copy too.
    """
    flat = send(images.flatten(1), device)
    n, scale = len(flat), flat.shape[1] ** -0.5
    chunk = max(1, min(chunk, MOST_VALUES // flat.shape[1]))
    best, other = flat.new_full((n,), float("inf")), flat.new_full((n,), float("inf"))
    which = torch.zeros(n, dtype=torch.long, device=flat.device)
    for start in range(0, table.originals, chunk):
        rows = np.arange(start, min(start + chunk, table.originals))
        distance = _to_variants(flat, table, rows) * scale  # (N, chunk)
        near, index = distance.min(1)
        # a training image at the same distance, up to rounding, is taken for a copy of the nearest one
        nearest = torch.minimum(near, best)
        pool = torch.cat([distance, best[:, None], other[:, None]], 1)
        pool = pool.masked_fill(pool <= nearest[:, None] + 1e-4, float("inf"))
        which = torch.where(near < best, index + start, which)
        best, other = nearest, pool.min(1).values
    return Neighbours(*to_host(which, best, other))


def _to_variants(flat: Tensor, table: Table, rows: np.ndarray) -> Tensor:
    """The distances (N, rows) of flat images (N, D) to the nearest variant of each row."""
    found = torch.full((len(flat), len(rows)), float("inf"), device=flat.device)
    for variant in range(table.variants):
        images = images_on(flat.device, table, rows + variant * table.originals).flatten(1)
        found = torch.minimum(found, torch.cdist(flat, images))
    return found


def nearest(images: Tensor, table: Table, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """For each of `images` (N, C, H, W) the nearest of `table`, and the root mean square distance of a pixel value,
    (N,)."""
    found = neighbours(images, table, chunk)
    return table.batch(found.row.numpy(), ["image"])["image"], found.first
