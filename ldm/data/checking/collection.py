"""All images of both splits under one numbering, whatever tables they are in."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ldm.data.storage.table import Table

_CHUNK_BYTES = 2**25


class Collection:
    """The images of both splits, numbered from 0: training first, and bucket after bucket.

    `parts` are the tables, `starts` the number of the first image of each, and `is_val` (N,) says which images are for
    validation.
    """

    def __init__(self, train: Table, val: Table):
        of_train, of_val = buckets_of(train), buckets_of(val)
        self.train, self.parts = train, [*of_train, *of_val]
        lengths = [len(part) for part in self.parts]
        self.starts = np.cumsum([0, *lengths])[:-1]
        self.is_val = np.repeat([False] * len(of_train) + [True] * len(of_val), lengths)

    def __len__(self) -> int:
        return len(self.is_val)

    def _place(self, i: int) -> tuple[Table, int]:
        part = int(np.searchsorted(self.starts, i, "right")) - 1
        return self.parts[part], i - int(self.starts[part])

    def name(self, i: int) -> str:
        """The file of an image; its number where the source gives no names."""
        table, row = self._place(i)
        return table.names[row] if row < len(table.names) else f"image {i}"

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The files of several images."""
        return [self.name(int(i)) for i in rows]

    def image(self, i: int) -> Tensor:
        """An image (C, H, W) in [-1, 1], as it is trained on."""
        table, row = self._place(i)
        return table.batch(np.array([row]), ["image"])["image"][0]

    def chunks(self) -> Iterator[np.ndarray]:
        """All images as they are stored, in chunks (n, C, H, W) uint8 or uint16."""
        for table in self.parts:
            size = max(1, _CHUNK_BYTES // table.images[0].nbytes)
            for start in range(0, len(table), size):
                yield np.asarray(table.images[start : start + size])

    def column(self, key: str) -> list | np.ndarray | None:
        """A column over all images; None if there is none."""
        if any(key not in part.columns for part in self.parts):
            return None
        found = [part.columns[key] for part in self.parts]
        if all(isinstance(column, np.ndarray) for column in found):
            return np.concatenate([np.asarray(column) for column in found])
        return [value for column in found for value in column]

    def frames(self) -> np.ndarray | None:
        """The `Preprocess.frame` of each image, (N, 6); None for tables of earlier versions."""
        found = [part.each_frame for part in self.parts]
        return None if any(frame is None for frame in found) else np.concatenate([np.asarray(f) for f in found])


def buckets_of(table: Table) -> list[Table]:
    """The tables that a table consists of: its buckets, or itself."""
    return getattr(table, "buckets", None) or [table]
