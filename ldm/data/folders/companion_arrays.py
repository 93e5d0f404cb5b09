"""Arrays beside images of the same name, NAME.npy and NAME.png: embeddings, latents or depths, or the image again."""

import io
from collections.abc import Sequence

import numpy as np

from ldm.data.folders.mask_pixels import NAMED, SAMPLED
from ldm.data.reading.paths import ending, evenly_spaced, stem
from ldm.data.reading.store import Store

_ARRAY = ".npy"
_REASON = f"arrays that aren't images of 8 or 16 bits, beside images of the same name ({NAMED})"


def arrays_beside(store: Store, images: Sequence[str]) -> dict[str, str]:
    """Maps each of `images` that is an array beside an image of the same name to the reason why it isn't a sample.

    Empty where the few that are looked at may be images themselves.
    """
    others = {stem(path) for path in images if ending(path) != _ARRAY}
    arrays = [path for path in images if ending(path) == _ARRAY and stem(path) in others]
    if all(_may_be_image(store, path) for path in evenly_spaced(arrays, SAMPLED)):
        return {}
    return dict.fromkeys(arrays, _REASON)


def _may_be_image(store: Store, path: str) -> bool:
    """Judged by data type and number of axes. A file that can't be read counts when it is decoded."""
    try:
        array = np.load(io.BytesIO(store.read(path)), allow_pickle=False)
    except Exception:
        return True
    return array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3)
