"""Reading images as they are meant to look: upright, in sRGB, with all their bits.

Pillow reads what it can represent. Files of .npy and other TIFFs (the `tiff` extra) are read as arrays, because Pillow
has no colour of 16 bits and at most four channels.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.images.files.colour import CICP, Notes, cicp, in_srgb
from ldm.images.files.metadata import check_metadata
from ldm.images.files.numpy_files import NPY, read_npy
from ldm.images.files.pillow import open_by_pillow, upright
from ldm.images.files.sources import Source, bytes_of, is_jpeg, naming, with_name
from ldm.images.files.tiff import FIRST, FOURTH, has_fourth, inverted, read_tiff
from ldm.images.files.unreadable import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .npy .ppm .pgm .pbm .pnm .avif .jp2 .tga .jfif".split()  # noqa: SIM905
)
READER = 5  # in the keys of decoded data; raise it whenever some image is read differently than before
MAX_PIXELS = 2**27  # an image with more counts as a decompression bomb
_READ = "ldm_as_meant"  # marks, in its info, an image that open_image has returned
_SEVERAL = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")  # formats with frames; those of an MPO are depths of a phone's image


@dataclass(frozen=True)
class ReadOptions:
    """How an image file is read.

    With `draft`, a JPEG may be decoded at a fraction of its size with no side below `draft` pixels, which is much
    faster. With `channels` 4, the fourth channel of a TIFF is read even if the file doesn't declare it as alpha. A file
    of more than `max_pixels` pixels is refused.
    """

    draft: int = 0
    channels: int | None = None
    max_pixels: int = MAX_PIXELS


def open_image(
    source: Source, options: ReadOptions = ReadOptions(), notes: Notes | None = None
) -> "Image | np.ndarray":
    """An image as it is meant to look: an upright Pillow image in sRGB, or an array from .npy and TIFF.

    Sentences about the conversion of colours are added to `notes`. Raises BadImage.
    """
    notes = [] if notes is None else notes
    with naming(source):
        image = open_unconverted(source, options, notes)
        if isinstance(image, np.ndarray) or image.info.get(_READ):
            return image
        image = in_srgb(image, notes)
        image.info[_READ] = True
        return image


def open_unconverted(
    source: Source, options: ReadOptions = ReadOptions(), notes: Notes | None = None
) -> "Image | np.ndarray":
    """The image as `open_image` reads it, but with the colours of the file, not converted to sRGB."""
    if isinstance(source, np.ndarray):
        return source
    if not isinstance(source, (str, Path, bytes)):
        return source if getattr(source, "info", {}).get(_READ) else upright(source)
    content, notes = bytes_of(source), [] if notes is None else notes
    if content.startswith(NPY):
        return read_npy(content)
    stream = io.BytesIO(content)
    check_metadata(stream)
    image = open_by_pillow(stream, options.channels, options.max_pixels)
    if image is None:
        return read_tiff(stream, notes, options.max_pixels)
    return _finished(image, content, options.draft, notes)


def open_map(source: Source) -> np.ndarray:
    """A map of ids, (h, w) uint8: grey values or palette indices as they are. Raises BadImage."""
    with naming(source):
        values = np.asarray(open_unconverted(source))  # ids aren't colours
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]  # grey saved as colour
    if values.ndim != 2 or is_jpeg(source):
        reason = "isn't a map of ids: a map has one channel or a palette, and isn't a JPEG, since JPEG blurs ids"
        raise BadImage(with_name(source, f"{reason}: save it as a grey .png"))
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() > 255:
        raise BadImage(with_name(source, f"holds {values.dtype} values; ids are whole numbers from 0 to 255"))
    return values.astype(np.uint8)


def _finished(image: Any, content: bytes, draft: int, notes: Notes) -> "Image":
    """An opened `image` of Pillow, upright, with what Pillow doesn't read from its `content`."""
    if image.format in _SEVERAL and getattr(image, "is_animated", False):
        notes.append(FIRST)
    if code := cicp(content):
        image.info[CICP] = code
    if draft:
        image.draft(None, (draft, draft))
    if has_fourth(image):
        notes.append(FOURTH)
    made = upright(image)
    return inverted(made, image.tag_v2) if image.format == "TIFF" and made.mode[:2] == "I;" else made
