"""TIFF beyond what Pillow holds: more bits, channels and pages, by tifffile."""

import logging
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ldm.images.colour import Notes, unconverted
from ldm.images.unknown import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # EXIF's tag; from 5 on it swaps the sides
BITS, SAMPLES, _PROFILE, _PHOTOMETRIC = 258, 277, 34675, 262  # TIFF's tags
_SUBFILE, _WITHIN = 254, 330  # of an image what it is (1: a smaller one of another), and where those within it are
_WHITE_IS_ZERO = 0  # its photometric interpretations
_NO_RGB = {5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
PAGES = "of several grey pages, each taken for a channel (save one page alone to take only that)"
FIRST = "the first of several pages or frames"
FOURTH = "a fourth channel of a TIFF isn't read; data.channels=4 reads it"


def be_quiet() -> None:
    """Keeps to themselves what the readers of TIFF say of each file's odd tags: what matters is told once, by us."""
    for name in ("tifffile", "PIL.TiffImagePlugin"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def is_preview(picture: Any) -> bool:
    """Whether the first image of a TIFF is a small one of those within: cameras' raw data begin so, whatever they are
    called."""
    return picture.format == "TIFF" and bool(int(picture.tag_v2.get(_SUBFILE, 0)) & 1) and _WITHIN in picture.tag_v2


def has_fourth(picture: Any) -> bool:
    """Whether it is a TIFF of four channels of which Pillow gives three: the last isn't said to be alpha."""
    return picture.format == "TIFF" and picture.mode == "RGB" and picture.tag_v2.get(SAMPLES) == 4


def inverted(picture: "Image", tags: Any) -> "Image":
    """A TIFF of 16 bits whose white is zero as others are; Pillow does so with 8 bits alone."""
    from PIL import Image

    if tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return picture
    top = 2 ** max(tags.get(BITS, (16,))) - 1
    made = Image.fromarray((top - np.asarray(picture).astype(np.int64)).astype(np.uint16))
    made.info = dict(picture.info)
    return made


def read_tiff(stream: BinaryIO, notes: Notes, most: int, head_only: bool = False) -> np.ndarray:
    """A TIFF's first picture (H, W) or (H, W, C); without its values (zeros that take no memory) if `head_only`.

    `most` are the pixels that it may have. Raises BadImage."""
    try:
        import tifffile
    except ImportError:
        raise BadImage("is a TIFF that Pillow can't hold; for these: pip install tifffile") from None
    be_quiet()
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        first: Any = file.series[0]
        if set(first.axes) & set("ITZ"):  # a row of pages, of times or of depths
            first = file.pages[0]
            notes += [FIRST] if len(file.pages) > 1 else []
        other = [i for i, axis in enumerate(first.axes) if axis not in "YX"]
        if np.prod([first.shape[first.axes.index(axis)] for axis in "YX"]) > most:
            raise BadImage(f"{first.shape} pixels are too many")
        notes += [PAGES] if other and len(getattr(first, "pages", ())) > 1 else []
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
    """Raises BadImage for colours that nothing here turns into RGB."""
    if space := _NO_RGB.get(int(page.photometric)):
        depth = page.bitspersample
        raise BadImage(f"is a TIFF of {space} with {depth} bits, which isn't converted: save it as RGB")


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) turned as TIFF's tag says: 2 to 4 mirror it or turn it by half, 5 to 8 swap its sides before."""
    if orientation not in range(2, 9):
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    down, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return array[:: -1 if down else 1, :: -1 if right else 1]
