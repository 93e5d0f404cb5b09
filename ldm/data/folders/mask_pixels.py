"""Whether files show masks and the like of images, by the pixels of a few."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ldm.data.reading.store import Store
from ldm.images import alike, turned

_PAIRS = 8  # that are looked at
_FEW, _MOST = 8, 0.9  # a mask's most frequent values, and their share of the pixels
NAMED = "metadata.jsonl can name them as masks and so on"
T = TypeVar("T")


class Pair(NamedTuple):
    """A file in a folder that may be about images, the path inside that folder, the folder around both, and the image
    there that goes by the same name."""

    path: str
    inner: str
    base: str
    image: str | None


def few(items: Sequence[T]) -> Sequence[T]:
    return items[:: -(-len(items) // _PAIRS) or 1]


def evidence_within(store: Store, pairs: Sequence[Pair], sure: bool, by_name: str) -> str | None:
    """By the pixels of a few: of the image's aspect, and grey or of few values where the image isn't."""
    looks = [(look(store, pair.path), look(store, str(pair.image))) for pair in few(pairs)]
    read = [(about, image) for about, image in looks if about and image]
    if not all(alike(about.shape, image.shape) for about, image in read):
        return None
    if read and all(about.few and not image.few for about, image in read):
        return f"{by_name} and of few values, as masks are"
    if read and all(about.grey and not image.grey for about, image in read):
        return f"{by_name} and grey where those are in colour"
    return by_name if sure else None


class Look(NamedTuple):
    shape: tuple[int, int]
    grey: bool
    few: bool


def look(store: Store, path: str) -> Look | None:
    """Height and width, whether it is grey, and whether a few values make it up; None for what can't be read."""
    try:
        picture = turned(store.read(path), 256)
        values = np.asarray(picture)
    except Exception:  # whatever it is, it is counted when it is decoded
        return None
    shape = (values.shape[0], values.shape[1])
    values = values[:: -(-shape[0] // 256), :: -(-shape[1] // 256)]
    if values.ndim == 3 and values.shape[2] < 3:
        values = values[..., 0]  # grey and alpha
    grey = values.ndim == 2 and getattr(picture, "mode", "L") != "P"
    if values.ndim == 3:
        grey = bool((values[..., :1] == values[..., :3]).all())
        values = values[..., :3].astype(np.int64) @ np.array([2**32, 2**16, 1])
    counts = np.sort(np.unique(values, return_counts=True)[1])
    return Look(shape, grey, bool(counts[-_FEW:].sum() > _MOST * values.size))
