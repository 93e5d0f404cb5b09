"""Images that are equal or nearly so. The images are sorted by several keys, and each is compared with its neighbours
in each order, which takes time proportional to N log N."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ldm.data.checking.pixels import Pixels

_WINDOW = 12  # neighbours in an order
_TURN = 4  # bits: each order begins with other bits of the hash
_PROJECTIONS = 8
_BITS = 6  # of 64 in which hashes of near copies may differ
_BLOCK, _SHIFT = 12.0, 16.0  # of 255: how far blocks may differ beyond a shift of the whole, and that shift


@dataclass
class Copies:
    """Groups of two or more numbers of images: those in `exact` have equal pixels; those in `near` look alike without
    being equal.

    `mixed` are the groups of either kind that have images for training and for validation.
    """

    exact: list[list[int]]
    near: list[list[int]]
    mixed: list[list[int]]

    @property
    def surplus(self) -> int:
        """How many images could be removed so that one of each exact group remains."""
        return sum(len(group) - 1 for group in self.exact)


def find_copies(pixels: Pixels, is_val: np.ndarray) -> Copies:
    """The copies among all images; `is_val` (N,) says which are for validation. Uniform images count only where they
    are equal."""
    exact = _groups_of(pixels.digests)
    repeated = {i for group in exact for i in group[1:]}
    candidates = np.setdiff1d(np.arange(len(is_val)), [*repeated, *pixels.uniform().tolist()])
    pairs = candidates[near_pairs(pixels.hashes[candidates], pixels.blocks[candidates])]
    near = _joined(pairs)
    members = {group[0]: group for group in exact}
    whole = [[i for first in group for i in members.get(first, [first])] for group in near]
    seen = {i for group in whole for i in group}
    groups = [*whole, *(group for group in exact if group[0] not in seen)]
    return Copies(exact, near, [group for group in groups if len(set(is_val[group].tolist())) > 1])


def near_pairs(hashes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of images that look alike: hashes (N,) that differ in at most 6 bits, and `blocks` (N, D) that
    differ by at most 12 of 255, apart from a change of brightness of at most 16. A pair that is far apart in every
    order is missed."""
    n = len(hashes)
    found = [_neighbours(order, hashes) for order in _orders(hashes, blocks)]
    codes = np.unique(np.concatenate([pairs[:, 0] * n + pairs[:, 1] for pairs in found]))
    pairs = np.stack([codes // max(n, 1), codes % max(n, 1)], 1)
    kept = [_alike(blocks, chunk) for chunk in np.array_split(pairs, len(pairs) // 2**16 + 1)]
    return pairs[np.concatenate(kept)]


def _orders(hashes: np.ndarray, blocks: np.ndarray) -> list[np.ndarray]:
    """Orders in which near copies are likely to be neighbours: by the hash, rotated by several numbers of bits, and by
    random projections of the blocks."""
    brightness = blocks.mean(1)
    orders = []
    for turn in range(0, 64, _TURN):
        turned = (hashes << np.uint64(turn)) | (hashes >> np.uint64((64 - turn) % 64))
        orders.append(np.lexsort((brightness, turned)))
    directions = np.random.Generator(np.random.Philox(0)).standard_normal((blocks.shape[1], _PROJECTIONS))
    projected = blocks @ directions.astype(np.float32)  # (N, projections)
    return [*orders, *(np.argsort(column, kind="stable") for column in projected.T)]


def _neighbours(order: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Pairs (P, 2), smaller number first, of images at most 12 places apart whose hashes differ in at most 6 bits."""
    pairs = [np.empty((0, 2), np.int64)]
    for step in range(1, _WINDOW + 1):
        a, b = order[:-step], order[step:]
        near = np.bitwise_count(hashes[a] ^ hashes[b]) <= _BITS
        pairs.append(np.stack([a[near], b[near]], 1))
    return np.sort(np.concatenate(pairs), axis=1)


def _alike(blocks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    difference = blocks[pairs[:, 0]] - blocks[pairs[:, 1]]  # (P, D)
    shift = difference.mean(1)
    return (np.abs(shift) <= _SHIFT) & (np.abs(difference - shift[:, None]).max(1) <= _BLOCK)


def _groups_of(keys: np.ndarray) -> list[list[int]]:
    """The positions of equal keys, in groups of two or more."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, key in enumerate(keys.tolist()):
        found[key].append(i)
    return [group for group in found.values() if len(group) > 1]


def _joined(pairs: np.ndarray) -> list[list[int]]:
    """The groups of numbers that the pairs (P, 2) connect, by union-find."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        """The representative of the set that `i` belongs to, with paths halved on the way (union-find)."""
        while (above := parent.setdefault(i, i)) != i:
            parent[i] = parent[above]
            i = above
        return i

    for a, b in pairs.tolist():
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    found: dict[int, list[int]] = defaultdict(list)
    for i in sorted(parent):
        found[root(i)].append(i)
    return list(found.values())
