"""The places of objects in an emoji scene."""

from dataclasses import dataclass

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.data.sources.scenes import Scenes

JITTERS = ("three", "pixels")
_FINE = 64  # from this side on an object lies at any pixel of its range


@dataclass(frozen=True)
class Placing:
    """The places of objects in scenes of `side` x `side` pixels, as top-left corners (row, column).

    Two objects, each half as large as the side, share it along their relation, so that they never overlap. Across the
    relation each is in the middle, as a single object is along both axes. In these directions objects are shifted by up
    to a sixteenth of the side: by that much either way or not at all (`jitter` "three"), or by any number of pixels up
    to that ("pixels").
    """

    side: int
    jitter: str

    @classmethod
    def of(cls, side: int, jitter: str | None) -> "Placing":
        """Places with the given jitter. None stands for "three" if the side is below 64 pixels, else for "pixels".
        Raises UserError."""
        if jitter is not None and jitter not in JITTERS:
            raise UserError(f"data.jitter={jitter} is unknown: three or pixels.{did_you_mean(str(jitter), JITTERS)}")
        return cls(side, jitter or JITTERS[side >= _FINE])

    @property
    def small(self) -> int:
        """The side of a small object, and of each of two."""
        return self.side // 2

    @property
    def big(self) -> int:
        """The side of a big object."""
        return self.side * 3 // 4

    @property
    def step(self) -> int:
        """Pixels between neighbouring shifts."""
        return self.side // 16 if self.jitter == "three" else 1

    @property
    def reach(self) -> int:
        """The largest shift in either direction, in steps."""
        return self.side // 16 // self.step

    @property
    def shifts(self) -> np.ndarray:
        """The allowed shifts in pixels, each as likely as any other."""
        return self.step * np.arange(-self.reach, self.reach + 1)

    def sides(self, scenes: Scenes) -> np.ndarray:
        """The side of each scene's objects (N,) in pixels."""
        return np.where(scenes.size == 1, self.big, self.small)

    def middles(self, scenes: Scenes) -> np.ndarray:
        """The corners without a shift (N, 2 objects, 2)."""
        middle = (self.side - self.sides(scenes)) // 2
        corners = np.repeat(middle, 4).reshape(-1, 2, 2)
        two = np.flatnonzero(scenes.relation)
        corners[two, :, scenes.relation[two] - 1] = [0, self.side - self.small]
        return corners

    def free(self, scenes: Scenes) -> np.ndarray:
        """Whether an object is shifted along an axis, (N, 2 objects, 2): a single one along both, two across their
        relation."""
        free = np.ones((len(scenes), 2, 2), bool)
        free[scenes.relation == 0, 1] = False  # there is no second
        two = np.flatnonzero(scenes.relation)
        free[two, :, scenes.relation[two] - 1] = False
        return free

    def draw(self, scenes: Scenes, rng: np.random.Generator) -> np.ndarray:
        """Shifted corners (N, 2 objects, 2)."""
        n = len(scenes)
        alone, across = (rng.integers(-self.reach, self.reach + 1, (n, 2)) for _ in range(2))
        steps = np.where((scenes.relation == 0)[:, None, None], alone[:, None], across[:, :, None])
        return self.middles(scenes) + self.step * steps * self.free(scenes)
