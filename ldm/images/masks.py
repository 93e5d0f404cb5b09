"""Masks, images of two values, in the many forms in which tools write them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.images.files.colour import Notes
from ldm.images.files.reading import open_unconverted
from ldm.images.files.sources import Source, is_jpeg, naming, with_name
from ldm.images.files.unreadable import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

BLACK, WHITE = "mask is entirely black: nothing is masked", "mask is entirely white: everything is masked"
PALETTE = "mask with a palette of several colours: everything but black is masked"
FEW = "mask of a few grey values: those above half are masked"
TWO = "mask of two small values other than 0: the higher one is masked, although in a trimap 1 is the object"
COLOURS = "mask of several colours: what is brighter than half is masked"
_SMALL = 32  # several whole numbers below it are kinds of pixels rather than shades of grey
_MOST = 8  # up to so many distinct values may be kinds rather than shades
_SPREAD = 64  # a difference of red, green and blue that JPEG doesn't cause in grey
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def open_mask(source: Source, notes: Notes | None = None) -> np.ndarray:
    """A mask (h, w) uint8 of 0 and 255.

    If there are exactly two values or colours the higher one is masked, whatever they are; shades are divided at half.
    If only transparency varies, it is the mask. A sentence about an ambiguous mask is added to `notes`. Raises
    BadImage, also for several small numbers (a trimap's 1, 2, 3), which don't tell what is masked.
    """
    notes = [] if notes is None else notes
    with naming(source):
        given = open_unconverted(source)
        _check_finite(given)
        values = _of_array(given) if isinstance(given, np.ndarray) else _of_image(given, notes)
    try:
        is_masked = _cut(values, is_jpeg(source), notes)
    except BadImage as error:
        raise BadImage(with_name(source, str(error))) from None
    if is_masked.all() or not is_masked.any():
        notes.append(WHITE if is_masked.all() else BLACK)
    return np.where(is_masked, np.uint8(255), np.uint8(0))


def _check_finite(given: "Image | np.ndarray") -> None:
    """Raises BadImage for infinite values and NaN."""
    if isinstance(given, np.ndarray) or given.mode == "F":
        values = np.asarray(given)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadImage("holds values that are not numbers (NaN or infinite): fill them, and save it again")


def _cut(values: np.ndarray, blurred: bool, notes: Notes) -> np.ndarray:
    """Which values (h, w), or colours (h, w, 3), are masked. If they are `blurred` by JPEG, two distinct values may
    belong to one kind of pixels."""
    if values.ndim == 3:
        return _cut_colours(values, blurred, notes)
    if values.dtype == bool:
        return values
    distinct = np.unique(values)
    if len(distinct) == 2 and not blurred:
        if values.dtype.kind in "ui" and distinct[0] > 0 and distinct[1] < _SMALL:
            notes.append(TWO)
        return values > distinct[0]
    top = 255.0 if blurred else _top(values.dtype, float(distinct[-1]))
    if len(distinct) > 2 and values.dtype.kind in "ui" and not blurred:
        if distinct[-1] < _SMALL:
            raise BadImage(_unclear(distinct))
        if len(distinct) <= _MOST and any(0 < value <= top / 2 for value in distinct):
            notes.append(FEW)
    return values > top / 2


def _top(kind: np.dtype, highest: float) -> float:
    """The value of white in values of type `kind`; 1 if no value is higher."""
    if highest <= 1:
        return 1.0
    if kind.kind in "ui" and kind.itemsize <= 2:
        return float(np.iinfo(kind).max)
    return next((top for top in (255.0, 65535.0) if highest <= top), highest)


def _unclear(distinct: np.ndarray) -> str:
    first = ", ".join(map(str, distinct[:_MOST].tolist())) + (", ..." if len(distinct) > _MOST else "")
    message = f"is a mask with the values {first}, which don't show what is masked"
    return f"{message}: write 255 where it is masked and 0 elsewhere"


def _cut_colours(values: np.ndarray, blurred: bool, notes: Notes) -> np.ndarray:
    """Which of the colours (h, w, 3) are masked: of two colours the one that isn't black, or the brighter one."""
    brightness = values.astype(np.float64) @ _LUMA  # (h, w)
    colours = _distinct(values)
    if len(colours) == 2 and not blurred:
        dark = min(colours, key=lambda colour: (any(colour), float(colour @ _LUMA)))
        return (values != dark).any(2)
    top = 255.0 if blurred else _top(values.dtype, float(values.max()))
    if (brightness <= top / 2).all():  # pure red is darker than half
        return values.max(2) > top / 2
    spread = values.max(2).astype(np.float64) - values.min(2)
    if spread.max() > _SPREAD * top / 255:
        notes.append(COLOURS)
    return brightness > top / 2


def _distinct(values: np.ndarray) -> np.ndarray:
    """The distinct colours (n, 3) among (h, w, 3); three of them if there are more."""
    pixels = values.reshape(-1, 3)
    found = pixels[:1]
    for _ in range(2):
        others = pixels[(pixels[:, None] != found[None]).any(2).all(1)]  # (m, 3)
        found = np.concatenate([found, others[:1]])
    return found


def _of_array(array: np.ndarray) -> np.ndarray:
    """The values (h, w) of an array, or (h, w, 3) in colour."""
    if array.ndim == 3 and array.shape[2] in (2, 4):
        return _of_layers(array[..., :-1].repeat(3 if array.shape[2] == 2 else 1, 2), array[..., -1])
    if array.ndim == 3 and array.shape[2] in (1, 3):
        return _grey(array)
    if array.ndim != 2:
        raise BadImage(f"has shape {array.shape}; a mask has one channel: save it in grey")
    return array


def _of_image(image: "Image", notes: Notes) -> np.ndarray:
    """The values (h, w) of a Pillow image, or (h, w, 3) in colour."""
    if image.mode[0] in "1IF" or image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image)
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return _of_layers(pixels[..., :3], pixels[..., 3])
    if image.mode == "P":
        return _of_palette(image, notes)
    return _grey(np.asarray(image.convert("RGB")))


def _of_palette(image: "Image", notes: Notes) -> np.ndarray:
    """The values of the palette if they are distinct greys, otherwise True for pixels that are masked.

    These are the ones that aren't black or, if none is black, those that don't have the lowest index.
    """
    index, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    used = np.unique(index)
    grey = _grey(colours)
    if grey.ndim == 2 and len(np.unique(grey)) == len(used):
        return grey
    if len(used) > 2:
        notes.append(PALETTE)
    is_black: np.ndarray = np.asarray(colours).max(2) == 0
    if is_black.any() and not is_black.all():
        return np.logical_not(is_black)
    return index > (used[0] if len(used) == 2 else 0)


def _of_layers(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) blended with black by alpha (h, w); alpha itself if all visible colours are the same."""
    opaque: Any = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else max(1, alpha.max())
    if (alpha == opaque).all():
        return _grey(colours)
    shown = colours[alpha > 0]  # (n, 3)
    if len(shown) and (shown == shown[0]).all():
        return alpha
    return _grey(np.rint(colours * (alpha[..., None] / opaque)).astype(colours.dtype))


def _grey(colours: np.ndarray) -> np.ndarray:
    """The colours (h, w, C) as (h, w) if all channels are the same."""
    return colours[..., 0] if (colours == colours[..., :1]).all() else colours
