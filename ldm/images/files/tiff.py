"""TIFF beyond what Pillow can represent: more bits, channels and pages, by tifffile."""

import logging
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ldm.images.files.colour import Notes, unconverted
from ldm.images.files.unreadable import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # EXIF's tag; values from 5 on swap height and width
BITS, SAMPLES, _PROFILE, _PHOTOMETRIC = 258, 277, 34675, 262  # TIFF's tags
_SUBFILE, _WITHIN = 254, 330  # what an image is (1: a reduced version of another), and where the images inside it are
_WHITE_IS_ZERO = 0  # photometric interpretations
_NO_RGB = {5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
PAGES = "several grey pages, each read as a channel (save one page alone to read only that)"
FIRST = "only the first of several pages or frames is read"
FOURTH = "the fourth channel of a TIFF isn't read; data.channels=4 reads it"


def silence_readers() -> None:
    """Silences the warnings of TIFF readers about unusual tags of each file."""
    for name in ("tifffile", "PIL.TiffImagePlugin"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def is_preview(image: Any) -> bool:
    """Whether the first image of a TIFF is a preview of one inside it, as in cameras' raw data of any ending."""
    return image.format == "TIFF" and bool(int(image.tag_v2.get(_SUBFILE, 0)) & 1) and _WITHIN in image.tag_v2


def has_fourth(image: Any) -> bool:
    """Whether it is a TIFF of four channels whose last isn't declared as alpha, so that Pillow reads three."""
    return image.format == "TIFF" and image.mode == "RGB" and image.tag_v2.get(SAMPLES) == 4


def inverted(image: "Image", tags: Any) -> "Image":
    """A TIFF of 16 bits, inverted if its white is zero; Pillow inverts only images of 8 bits."""
    from PIL import Image

    if tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return image
    top = 2 ** max(tags.get(BITS, (16,))) - 1
    made = Image.fromarray((top - np.asarray(image).astype(np.int64)).astype(np.uint16))
    made.info = dict(image.info)
    return made


def read_tiff(stream: BinaryIO, notes: Notes, max_pixels: int, head_only: bool = False) -> np.ndarray:
    """The first image (H, W) or (H, W, C) of a TIFF, which may have up to `max_pixels` pixels.

    With `head_only` its values are zeros, which take no memory. Raises BadImage.
    """
    try:
        import tifffile
    except ImportError:
        raise BadImage("is a TIFF that Pillow can't represent: pip install tifffile") from None
    silence_readers()
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        first: Any = file.series[0]
        if set(first.axes) & set("ITZ"):  # a series of pages, times or depths
            first = file.pages[0]
            if len(file.pages) > 1:
                notes.append(FIRST)
        other = [i for i, axis in enumerate(first.axes) if axis not in "YX"]
        if np.prod([first.shape[first.axes.index(axis)] for axis in "YX"]) > max_pixels:
            raise BadImage(f"has {first.shape} pixels, which are too many: reduce it, or cut it into parts")
        if other and len(getattr(first, "pages", ())) > 1:
            notes.append(PAGES)
        page: Any = file.pages[0]
        profile = page.tags.get(_PROFILE)
        _check_colours(page)
        notes += unconverted(profile and bytes(profile.value), "RGB" if other else "L")
        array = np.broadcast_to(first.dtype.type(0), first.shape) if head_only else first.asarray()
        tags = {tag.code: tag.value for tag in page.tags if tag.code in (ORIENTATION, _PHOTOMETRIC)}
    array = np.moveaxis(array, other, range(-len(other), 0)) if other else array
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and array.dtype.kind == "u" and not head_only:
        array = np.iinfo(array.dtype).max - array
    return oriented(array, int(tags.get(ORIENTATION, 1)))


def _check_colours(page: Any) -> None:
    """Raises BadImage for colours that can't be converted to RGB here."""
    if space := _NO_RGB.get(int(page.photometric)):
        depth = page.bitspersample
        raise BadImage(f"is a TIFF of {space} with {depth} bits, which isn't converted: save it as RGB")


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W, ...) turned by TIFF's `orientation`: 2 to 4 mirror it or rotate it by 180 degrees, 5 to 8
    transpose it before."""
    if orientation not in range(2, 9):
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    down, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return array[:: -1 if down else 1, :: -1 if right else 1]
