"""Images of mixed shapes in buckets of one shape each, all with about the same area (as by NovelAI, 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from ldm.data.storage.lazy import Joined
from ldm.data.storage.table import Table

Shape = tuple[int, int]  # height, width
MOST_ASPECT = 2.0


@dataclass
class Buckets(Table):
    """Several tables; each training batch comes from one of them. Where all images must have one shape, in validation
    and in the samples made while training, it acts as the largest of them."""

    buckets: list[Table] = field(default_factory=list)

    @classmethod
    def of(cls, tables: Sequence[Table], key: str) -> "Buckets":
        """The tables as buckets."""
        largest = max(tables, key=len)
        own = {f.name: getattr(largest, f.name) for f in fields(Table)}
        names = Joined([table.names for table in tables])  # in the order of the indices in batches
        return cls(**own | {"key": key, "names": names}, buckets=list(tables))


def shapes(side: int, step: int) -> list[Shape]:
    """Heights and widths that are multiples of `step`, with an area of at most side^2 and an aspect of at most 2."""
    found = []
    for width in range(step, int(side * math.sqrt(MOST_ASPECT)) + step, step):
        height = side * side // width // step * step
        if height and max(height / width, width / height) <= MOST_ASPECT:
            found.append((height, width))
    return found


def assign(sizes: Sequence[Shape], known: Sequence[Shape], least: int = 1) -> np.ndarray:
    """The bucket of each image (N,): the one with the nearest aspect, in logarithm, among those that get at least
    `least` images. If none does, the one that gets most images."""
    aspects = np.log([width / height for height, width in sizes])
    buckets = np.log([width / height for height, width in known])
    nearest = np.abs(aspects[:, None] - buckets).argmin(1)  # (N,)
    counts = np.bincount(nearest, minlength=len(known))
    kept = np.flatnonzero(counts >= least)
    kept = kept if len(kept) else np.array([counts.argmax()])
    return kept[np.abs(aspects[:, None] - buckets[kept]).argmin(1)]
