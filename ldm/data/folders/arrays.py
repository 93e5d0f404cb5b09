"""Arrays beside images of the same name, NAME.npy and NAME.png: embeddings, latents or depths, or the image again."""

import io
from collections.abc import Sequence

import numpy as np

from ldm.data.folders.mask_pixels import NAMED, few
from ldm.data.reading.beside import ending, stem
from ldm.data.reading.store import Store

_ARRAY = ".npy"
_REASON = f"arrays that are no images of 8 or 16 bits, beside images of the same name ({NAMED})"


def arrays_beside(store: Store, images: Sequence[str]) -> dict[str, str]:
    """The arrays among `images` that have an image of their name beside them, with the reason why they are none
    themselves; nothing where a few that are looked at may be images."""
    plain = {stem(path) for path in images if ending(path) != _ARRAY}
    arrays = [path for path in images if ending(path) == _ARRAY and stem(path) in plain]
    return {} if all(_is_image(store, path) for path in few(arrays)) else dict.fromkeys(arrays, _REASON)


def _is_image(store: Store, path: str) -> bool:
    """By its kind of numbers and its axes; what can't be read is counted when it is decoded."""
    try:
        array = np.load(io.BytesIO(store.read(path)), allow_pickle=False)
    except Exception:
        return True
    return array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3)
