"""Whether files are masks, maps or the like of images, judged by the pixels of a few of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm.data.reading.paths import evenly_spaced
from ldm.data.reading.store import Store
from ldm.images import ReadOptions, alike, open_unconverted

SAMPLED = 8  # files that are looked at
_MASK_VALUES, _MASK_SHARE = 8, 0.9  # the most frequent values of a mask, and the share of its pixels that have them
_SIDE = 256  # pixels: about the resolution at which an image is looked at
NAMED = "data.pairs= or metadata.jsonl can name them as masks or other companions"


class Pair(NamedTuple):
    """A file that may be a mask or the like, and the image that it may belong to.

    `inner` is its path inside the folder of masks, `base` the folder around both, and `image` the image there that has
    the same name, None where there is none.
    """

    path: str
    inner: str
    base: str
    image: str | None


class PixelFacts(NamedTuple):
    """The height and width of an image, whether it is grey, and whether nearly all its pixels have one of a few
    values."""

    shape: tuple[int, int]
    is_grey: bool
    has_few_values: bool


def mask_evidence(store: Store, pairs: Sequence[Pair], sure: bool, by_name: str) -> str | None:
    """The evidence that the files belong to their images, in words that begin with `by_name`; None if there is none.

    They must have the aspect of their images, and be grey or of few values where the images aren't. Where their names
    are `sure`, the aspect suffices.
    """
    facts = [
        (pixel_facts(store, pair.path), pixel_facts(store, str(pair.image))) for pair in evenly_spaced(pairs, SAMPLED)
    ]
    read = [(file, image) for file, image in facts if file and image]
    if not all(alike(file.shape, image.shape) for file, image in read):
        return None
    if read and all(file.has_few_values and not image.has_few_values for file, image in read):
        return f"{by_name} and with few values, like masks"
    if read and all(file.is_grey and not image.is_grey for file, image in read):
        return f"{by_name} and grey where the images are in colour"
    return by_name if sure else None


def pixel_facts(store: Store, path: str) -> PixelFacts | None:
    """What the pixels of an image file show; None for a file that can't be read."""
    try:
        image = open_unconverted(store.read(path), ReadOptions(draft=_SIDE))
        values = np.asarray(image)
    except Exception:  # whatever it is, it is counted when it is decoded
        return None
    height, width = values.shape[:2]
    values = values[:: -(-height // _SIDE), :: -(-width // _SIDE)]
    if values.ndim == 3 and values.shape[2] < 3:
        values = values[..., 0]  # grey and alpha
    is_grey = values.ndim == 2 and getattr(image, "mode", "L") != "P"
    if values.ndim == 3:
        is_grey = bool((values[..., :1] == values[..., :3]).all())
        values = values[..., :3].astype(np.int64) @ np.array([2**32, 2**16, 1])  # one number for each colour
    counts = np.sort(np.unique(values, return_counts=True)[1])
    return PixelFacts((height, width), is_grey, bool(counts[-_MASK_VALUES:].sum() > _MASK_SHARE * values.size))
