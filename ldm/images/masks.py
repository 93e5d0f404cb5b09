"""Masks: images of yes and no, in the many forms in which tools write them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.images.colour import Notes
from ldm.images.reading import Source, is_jpeg, named, naming, turned
from ldm.images.unknown import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

BLACK, WHITE = "mask is wholly black: nothing is masked", "mask is wholly white: everything is masked"
PALETTE = "mask of a palette of several colours: all but black is masked"
FEW = "mask of a few grey values: those above half are masked"
TWO = "mask of two small numbers, neither 0: the higher is masked, though a trimap's 1 is its object"
COLOURS = "mask of several colours: what is brighter than half is masked"
_SMALL = 32  # below it several whole numbers are kinds of pixels, not shades of grey
_MOST = 8  # distinct values that may be kinds rather than shades
_SPREAD = 64  # of red, green and blue, beyond what JPEG makes of grey
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def open_mask(source: Source, notes: Notes | None = None) -> np.ndarray:
    """An image of yes and no, (h, w) uint8 of 0 and 255.

    Of exactly two values or colours the higher one is masked, whatever they are; shades are cut at half. Transparency
    is the mask where nothing else varies. What may be meant otherwise goes to `notes`. Raises BadImage, also for
    several small numbers (a trimap's 1, 2, 3), which don't say what is masked.
    """
    notes = [] if notes is None else notes
    with naming(source):
        given = turned(source)
        _check_finite(given)
        values = _of_array(given) if isinstance(given, np.ndarray) else _of_picture(given, notes)
    try:
        is_masked = _cut(values, is_jpeg(source), notes)
    except BadImage as error:
        raise BadImage(named(source, str(error))) from None
    if is_masked.all() or not is_masked.any():
        notes.append(WHITE if is_masked.all() else BLACK)
    return np.where(is_masked, np.uint8(255), np.uint8(0))


def _check_finite(given: "Image | np.ndarray") -> None:
    if isinstance(given, np.ndarray) or given.mode == "F":
        values = np.asarray(given)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadImage("holds values that are not numbers (NaN or infinite): fill them, and save it again")


def _cut(values: np.ndarray, blurred: bool, notes: Notes) -> np.ndarray:
    """Which of the values (h, w) are masked. JPEG blurs, so that two values there are no kinds."""
    if values.ndim == 3:
        return _cut_colours(values, blurred, notes)
    if values.dtype == bool:
        return values
    distinct = np.unique(values)
    if len(distinct) == 2 and not blurred:
        notes += [TWO] if values.dtype.kind in "ui" and distinct[0] > 0 and distinct[1] < _SMALL else []
        return values > distinct[0]
    top = 255.0 if blurred else _top(values.dtype, float(distinct[-1]))
    if len(distinct) > 2 and values.dtype.kind in "ui" and not blurred:
        if distinct[-1] < _SMALL:
            raise BadImage(_unclear(distinct))
        few = len(distinct) <= _MOST and any(0 < value <= top / 2 for value in distinct)
        notes += [FEW] if few else []
    return values > top / 2


def _top(kind: np.dtype, highest: float) -> float:
    """The value of white; 1 where nothing goes beyond it."""
    if highest <= 1:
        return 1.0
    if kind.kind in "ui" and kind.itemsize <= 2:
        return float(np.iinfo(kind).max)
    return next((top for top in (255.0, 65535.0) if highest <= top), highest)


def _unclear(distinct: np.ndarray) -> str:
    some = ", ".join(map(str, distinct[:_MOST].tolist())) + (", ..." if len(distinct) > _MOST else "")
    return (
        f"is a mask of the values {some}, which don't say what is masked: write 255 where it is masked and 0 elsewhere"
    )


def _cut_colours(values: np.ndarray, blurred: bool, notes: Notes) -> np.ndarray:
    """Which of the colours (h, w, 3) are masked: of two the one that isn't black, or the brighter."""
    brightness = values.astype(np.float64) @ _LUMA  # (h, w)
    colours = _distinct(values)
    if len(colours) == 2 and not blurred:
        dark = min(colours, key=lambda colour: (any(colour), float(colour @ _LUMA)))
        return (values != dark).any(2)
    top = 255.0 if blurred else _top(values.dtype, float(values.max()))
    if (brightness <= top / 2).all():  # pure red is darker than half
        return values.max(2) > top / 2
    spread = values.max(2).astype(np.float64) - values.min(2)
    notes += [COLOURS] if spread.max() > _SPREAD * top / 255 else []
    return brightness > top / 2


def _distinct(values: np.ndarray) -> np.ndarray:
    """The colours (n, 3) among (h, w, 3), at most three of them where there are many."""
    pixels = values.reshape(-1, 3)
    found = pixels[:1]
    for _ in range(2):
        others = pixels[(pixels[:, None] != found[None]).any(2).all(1)]  # (m, 3)
        found = np.concatenate([found, others[:1]])
    return found


def _of_array(array: np.ndarray) -> np.ndarray:
    """(h, w), or (h, w, 3) in colour."""
    if array.ndim == 3 and array.shape[2] in (2, 4):
        return _of_layers(array[..., :-1].repeat(3 if array.shape[2] == 2 else 1, 2), array[..., -1])
    if array.ndim == 3 and array.shape[2] in (1, 3):
        return _grey(array)
    if array.ndim != 2:
        raise BadImage(f"has shape {array.shape}; a mask has one channel")
    return array


def _of_picture(picture: "Image", notes: Notes) -> np.ndarray:
    if picture.mode[0] in "1IF" or picture.mode == "L" and not picture.has_transparency_data:
        return np.asarray(picture)
    if picture.has_transparency_data:
        pixels = np.asarray(picture.convert("RGBA"))
        return _of_layers(pixels[..., :3], pixels[..., 3])
    if picture.mode == "P":
        return _of_palette(picture, notes)
    return _grey(np.asarray(picture.convert("RGB")))


def _of_palette(picture: "Image", notes: Notes) -> np.ndarray:
    """Colours where they are grey; else what isn't black or, where nothing is, isn't the lowest index."""
    index, colours = np.asarray(picture), np.asarray(picture.convert("RGB"))
    used = np.unique(index)
    grey = _grey(colours)
    if grey.ndim == 2 and len(np.unique(grey)) == len(used):
        return grey
    notes += [PALETTE] if len(used) > 2 else []
    is_black: np.ndarray = np.asarray(colours).max(2) == 0
    if is_black.any() and not is_black.all():
        return np.logical_not(is_black)
    return index > (used[0] if len(used) == 2 else 0)


def _of_layers(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) laid on black by alpha (h, w); alpha alone where the colours that it shows are all the same."""
    opaque: Any = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else max(1, alpha.max())
    if (alpha == opaque).all():
        return _grey(colours)
    shown = colours[alpha > 0]  # (n, 3)
    if len(shown) and (shown == shown[0]).all():
        return alpha
    return _grey(np.rint(colours * (alpha[..., None] / opaque)).astype(colours.dtype))


def _grey(colours: np.ndarray) -> np.ndarray:
    """(h, w) where all channels of (h, w, C) are the same."""
    return colours[..., 0] if (colours == colours[..., :1]).all() else colours
