"""Which sample comes when: a pure function of (seed, position), so that a run resumes in mid-epoch exactly."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ldm.errors import UserError
from ldm.randomness import permutation


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


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    order = permutation(seed, epoch, n)
    order.setflags(write=False)  # shared by all who ask
    return order
