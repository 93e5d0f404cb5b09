"""The order of samples: a pure function of (seed, position), so that a run resumes in mid-epoch exactly."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.storage.mapped import ByPath


class PositionSampler:
    """Endless global sample positions, a batch at a time: (batch_size / world,) int64 for this rank.

    Batch k of the run covers the positions [k B, (k+1) B) and rank r takes the r-th contiguous part, so the ranks
    together see what a single process would see. `start` is the position of the next batch: set it before iterating to
    resume.
    """

    def __init__(self, batch_size: int, rank: int = 0, world: int = 1, start: int = 0):
        if batch_size < 1 or batch_size % world:
            raise UserError(f"batch_size={batch_size} can't be shared by {world} processes; use a multiple of {world}.")
        self.batch_size, self.rank, self.world, self.start = batch_size, rank, world, start

    def __iter__(self) -> Iterator[np.ndarray]:
        share = self.batch_size // self.world
        position = self.start
        while True:
            yield position + self.rank * share + np.arange(share)  # (batch_size / world,)
            position += self.batch_size


def index_of(position: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The sample (B,) at each global position (B,) of a data set of n samples; each epoch, `position // n`, has its own
    order."""
    position = np.asarray(position)
    epoch, offset = position // n, position % n
    index = np.empty_like(position)
    for e in np.unique(epoch).tolist():
        here = epoch == e
        index[here] = _order(seed, e, n)[offset[here]]
    return index  # (B,)


class Visits(ByPath):
    """The visits of an epoch: each of n samples once, or `repeats` (n,) times.

    `total` is their number. Pickling keeps the repeats, or the name of their file, and counts the rest again.
    """

    def __init__(self, n: int, repeats: np.ndarray | None = None):
        self.n, self.repeats = n, repeats
        self._count()

    def _count(self) -> None:
        self.ends = None if self.repeats is None else np.cumsum(self.repeats)
        self.total = self.n if self.ends is None else int(self.ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "ends"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._count()

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The samples (B,) of these visits (B,)."""
        return index if self.ends is None else np.searchsorted(self.ends, index, side="right")


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    order = permutation(seed, epoch, n)
    order.setflags(write=False)  # shared by all callers
    return order


def bucket_rows(
    position: np.ndarray, *, number: int, sizes: Sequence[int], batch_size: int, seed: int
) -> tuple[int, np.ndarray]:
    """The bucket of the batch `number`, and the rows (B,) in this bucket at the positions (B,) of the batch, or of a
    rank's part of it. `sizes` are the buckets' numbers of samples.

    Each bucket has an endless order of its own, divided into batches of B = `batch_size`. Epoch e has those from
    floor(e n / B) on, where n is the bucket's size, so that over the epochs all samples are visited equally often. The
    order in which the buckets take turns is a permutation fixed by (seed, epoch).
    """
    bucket, nth = _bucket_of(number, sizes, batch_size, seed)
    own_position = np.asarray(position) + (nth - number) * batch_size  # in the bucket's own order
    return bucket, index_of(own_position, sizes[bucket], seed)


def _bucket_of(number: int, sizes: Sequence[int], batch_size: int, seed: int) -> tuple[int, int]:
    """The bucket of the batch `number`, and how many batches of this bucket come before."""
    epoch = _epoch_of(number, sizes, batch_size)
    before = _batches_before(epoch, sizes, batch_size)  # (buckets,)
    turns = _batches_before(epoch + 1, sizes, batch_size) - before  # batches of each bucket in this epoch
    ends = np.cumsum(turns)
    turn = int(_order(seed, epoch, int(ends[-1]))[number - before.sum()])
    bucket = int(np.searchsorted(ends, turn, side="right"))
    turns_of_others = ends[bucket] - turns[bucket]
    return bucket, int(before[bucket] + turn - turns_of_others)


def _epoch_of(number: int, sizes: Sequence[int], batch_size: int) -> int:
    """The epoch of the batch `number`."""
    epoch = number * batch_size // sum(sizes)
    while _batches_before(epoch + 1, sizes, batch_size).sum() <= number:
        epoch += 1
    return epoch


def _batches_before(epoch: int, sizes: Sequence[int], batch_size: int) -> np.ndarray:
    """How many batches of each bucket the epochs before `epoch` have, (buckets,)."""
    return np.array([epoch * n // batch_size for n in sizes])
