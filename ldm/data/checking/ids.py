"""How often each class, and each id in maps, occurs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.data.storage.table import Table

RARE = 8  # images: a class with fewer is hardly learned
UNBALANCED = 10  # times as many images in the largest class as in the smallest
_MANY = 64  # ids of a map beyond which it is rather an image
_CHUNK = 256


def class_counts(labels: np.ndarray, is_val: np.ndarray, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The images of each class for training and for validation."""
    n = max(len(names), int(labels.max(initial=0)) + 1)
    train, val = (np.bincount(labels[chosen], minlength=n).tolist() for chosen in (~is_val, is_val))
    named = [*names, *map(str, range(len(names), n))]
    return {name: (a, b) for name, a, b in zip(named, train, val, strict=True)}


@dataclass
class MapIds:
    """For each id that occurs in maps, its share of the pixels and the number of images that contain it."""

    pixels: dict[int, float]
    images: dict[int, int]

    @property
    def are_many(self) -> bool:
        """Whether there are too many ids for maps of classes: the files may be in colour, or lossy JPEGs."""
        return len(self.pixels) > _MANY

    @property
    def gaps(self) -> list[int]:
        """The ids below the highest that no map has."""
        return [i for i in range(max(self.pixels, default=0)) if i not in self.pixels]


def map_ids(tables: Sequence[Table]) -> MapIds:
    """The ids in the maps of all tables."""
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for table in tables:
        maps = np.asarray(table.columns["map"])
        for start in range(0, len(maps), _CHUNK):
            flat = maps[start : start + _CHUNK].reshape(len(maps[start : start + _CHUNK]), -1).astype(np.int64)
            offset = flat + 256 * np.arange(len(flat))[:, None]
            counts = np.bincount(offset.ravel(), minlength=256 * len(flat)).reshape(-1, 256)  # (n, 256)
            pixels, images = pixels + counts.sum(0), images + (counts > 0).sum(0)
    present = np.flatnonzero(pixels).tolist()
    return MapIds({i: float(pixels[i] / pixels.sum()) for i in present}, {i: int(images[i]) for i in present})
