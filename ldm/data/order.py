"""Which sample comes when: a pure function of (seed, position), so that a run resumes in mid-epoch exactly."""

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
    together see what one process would. `start` is the position of the next batch: set it before iterating to resume.
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
    """The sample shown at each global position (B,) of a data set of n: epoch `position // n` has its own order."""
    position = np.asarray(position)
    epoch, offset = position // n, position % n
    index = np.empty_like(position)
    for e in np.unique(epoch).tolist():
        here = epoch == e
        index[here] = _order(seed, e, n)[offset[here]]
    return index  # (B,)


class Visits(ByPath):
    """The visits of an epoch: each of n samples once, or as often as `repeats` (n,) says.

    Pickled, it is the repeats, or the name of their file: where each sample's visits end is counted anew.
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
    order.setflags(write=False)  # shared by all who ask
    return order


def bucket_rows(
    position: np.ndarray, number: int, sizes: Sequence[int], batch_size: int, seed: int
) -> tuple[int, np.ndarray]:
    """For the positions (B,) of the batch `number`, or a rank's part of them: the bucket, of several that hold `sizes`
    samples, and the rows in it.

    Each bucket has an endless order of its own, of which epoch e has the batches from floor(e n / B) on: over the
    epochs every sample comes equally often, whatever its bucket's size. Which bucket's turn it is, is a permutation
    that (seed, epoch) fixes.
    """
    epoch = number * batch_size // sum(sizes)
    while sum(_begun(sizes, epoch + 1, batch_size)) <= number:
        epoch += 1
    begun, ended = (np.array(_begun(sizes, e, batch_size)) for e in (epoch, epoch + 1))
    ends = np.cumsum(ended - begun)
    turn = int(_order(seed, epoch, int(ends[-1]))[number - begun.sum()])
    bucket = int(np.searchsorted(ends, turn, side="right"))
    nth = int(ended[bucket] - (ends[bucket] - turn))  # batch of this bucket
    return bucket, index_of((nth - number) * batch_size + np.asarray(position), sizes[bucket], seed)


def _begun(sizes: Sequence[int], epoch: int, batch_size: int) -> list[int]:
    """How many batches of each bucket the epochs before `epoch` had."""
    return [epoch * n // batch_size for n in sizes]
