"""The content of emoji scenes, in numbers and words, and the combinations that are held out of training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ldm.common.errors import UserError
from ldm.data.sources.languages import SENTENCES

_PAIR_SHARE, _GROUND_SHARE = 0.12, 0.10
_SINGLE_SHARE = 0.3


@dataclass
class Scenes:
    """N scenes, (N,) int64 each: object ids (-1 for no second), relation, background, size (-1 for two objects)."""

    first: np.ndarray
    second: np.ndarray
    relation: np.ndarray
    background: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: np.ndarray | slice) -> "Scenes":
        return Scenes(**{name: column[index] for name, column in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """The scenes as named columns."""
        return {name: getattr(self, name) for name in _NAMES}

    def captions(self, objects: Sequence[str], backgrounds: Sequence[str], language: str = "en") -> list[str]:
        """One exact sentence for each scene."""
        rows = zip(*(column.tolist() for column in self.columns().values()), strict=True)
        return [SENTENCES[language](objects, backgrounds, *row) for row in rows]


_NAMES = tuple(f.name for f in fields(Scenes))


@dataclass(frozen=True)
class HeldOut:
    """The combinations held out of training: `pairs` of objects (K, K) bool, symmetric, and `grounds`, objects on
    backgrounds, (K, backgrounds) bool."""

    pairs: np.ndarray
    grounds: np.ndarray

    def of(self, scenes: Scenes) -> np.ndarray:
        """Whether each scene holds a held-out combination, (N,) bool."""
        two = scenes.second >= 0
        second = np.where(two, scenes.second, scenes.first)
        grounds = self.grounds[scenes.first, scenes.background] | self.grounds[second, scenes.background]
        return grounds | (two & self.pairs[scenes.first, second])


def hold_out(objects: int, backgrounds: int, seed: int) -> HeldOut:
    """Chooses the held-out combinations by `seed`, spread evenly, so that every object keeps most of its partners."""
    rng = np.random.default_rng([seed, 1])
    pairs = np.zeros((objects, objects), bool)
    first, second = np.triu_indices(objects, 1)
    wanted = max(1, round(_PAIR_SHARE * len(first))) if len(first) > 2 else 0
    most = -(-2 * wanted // objects) if wanted else 0  # of one object
    for i in rng.permutation(len(first)):
        a, b = first[i], second[i]
        if pairs.sum() < 2 * wanted and max(pairs[a].sum(), pairs[b].sum()) < most:
            pairs[a, b] = pairs[b, a] = True
    grounds = np.zeros((objects, backgrounds), bool)
    wanted = max(1, round(_GROUND_SHARE * objects * backgrounds))
    for row in rng.permutation(objects)[:wanted]:  # the share is below one background an object
        grounds[row, rng.integers(backgrounds)] = True
    return HeldOut(pairs, grounds)


def draw_scenes(held_out: HeldOut, n: int, seed: int, validation: bool) -> Scenes:
    """n scenes by `seed`: for validation each contains a held-out combination, for training none does."""
    rng = np.random.default_rng([seed, 2])
    objects, backgrounds = held_out.grounds.shape
    kept: list[Scenes] = []
    while sum(map(len, kept)) < n:
        scenes = _draw(rng, objects, backgrounds, 4096)
        kept.append(scenes[held_out.of(scenes) == validation])
    return Scenes(**{name: np.concatenate([scenes.columns()[name] for scenes in kept])[:n] for name in _NAMES})


def draw_any(held_out: HeldOut, n: int, seed: int) -> Scenes:
    """n scenes by `seed`, with or without held-out combinations."""
    objects, backgrounds = held_out.grounds.shape
    return _draw(np.random.default_rng([seed, 5]), objects, backgrounds, n)


def draw_held_out(held_out: HeldOut, n: int, two: int, seed: int) -> Scenes:
    """n scenes by `seed`, in random order: `two` have a held-out pair, the others a single object."""
    if not 0 <= two <= n:
        raise UserError(f"{two} of {n} scenes can't have two objects.")
    rng = np.random.default_rng([seed, 4])
    objects, backgrounds = held_out.grounds.shape
    if two and not held_out.pairs.any():
        raise UserError(f"with {objects} objects no pair is held out; name at least three objects.")
    a, b = np.nonzero(held_out.pairs)  # both orders
    pairs = np.array([(i, j, r, g, -1) for i, j in zip(a, b, strict=True) for r in (1, 2) for g in range(backgrounds)])
    single = np.array([(i, -1, 0, g, s) for i, g in zip(*np.nonzero(held_out.grounds), strict=True) for s in (0, 1)])
    rows = np.concatenate([_choose(rng, pairs, two), _choose(rng, single, n - two)])
    return Scenes(**dict(zip(_NAMES, rng.permutation(rows).T.astype(np.int64), strict=True)))


def _draw(rng: np.random.Generator, objects: int, backgrounds: int, n: int) -> Scenes:
    first = rng.integers(objects, size=n)
    second = (first + rng.integers(1, objects, n)) % objects  # any other object
    relation, size = rng.integers(1, 3, n), rng.integers(2, size=n)
    single = rng.random(n) < _SINGLE_SHARE
    return Scenes(
        first=first,
        second=np.where(single, -1, second),
        relation=np.where(single, 0, relation),
        background=rng.integers(backgrounds, size=n),
        size=np.where(single, size, -1),
    )


def _choose(rng: np.random.Generator, rows: np.ndarray, n: int) -> np.ndarray:
    """n of `rows` in random order. If rows repeat, their counts differ by at most one."""
    if n == 0:
        return np.empty((0, 5), np.int64)
    rounds = [rng.permutation(rows) for _ in range(-(-n // len(rows)))]
    return np.concatenate(rounds)[:n]
