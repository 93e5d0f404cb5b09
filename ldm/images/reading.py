"""Reading pictures as they are meant: turned, with their colours, in all their bits.

Pillow reads what it can hold; .npy and TIFF (the `tiff` extra) hold the rest: Pillow has no 16-bit colour and no more
than four channels.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ldm.common.errors import UserError
from ldm.images.axes import check_channels, shape_of_array
from ldm.images.colour import CICP, Notes, cicp, in_srgb
from ldm.images.metadata import check_metadata
from ldm.images.tiff import (
    BITS,
    FIRST,
    FOURTH,
    ORIENTATION,
    SAMPLES,
    be_quiet,
    has_fourth,
    inverted,
    is_preview,
    read_tiff,
)
from ldm.images.unknown import DRAWINGS, HEAD, BadImage, what_it_is

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .npy .ppm .pgm .pbm .pnm .avif .jp2 .tga .jfif".split()  # noqa: SIM905
)
READER = 5  # in the keys of decoded data; raise it whenever some image is read otherwise than before
MAX_PIXELS = 2**27  # beyond this a file is taken for a decompression bomb
_COMPRESSION, _FAX = 259, (2, 3, 4)
_AS_MEANT = "ldm_as_meant"  # marks, in its info, a picture that has been through open_image
_OF_SEVERAL = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")  # (a phone's MPO has a depth or a gain map behind its image)
_NPY = b"\x93NUMPY"
_MAXVAL = re.compile(r"'RGB', (\d+)\)")  # in how Pillow reads a PPM
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


Source = Any  # a file's path or bytes, a Pillow image, or an array


def open_image(
    source: Source,
    draft: int = 0,
    notes: Notes | None = None,
    channels: int | None = None,
    most: int | None = None,
) -> "Image | np.ndarray":
    """A picture from a file, its bytes or Pillow: a Pillow image in sRGB, turned as its EXIF says, or an array from
    .npy and TIFF.

    With `draft` a JPEG may be decoded at a fraction of its size, no side below `draft` pixels, which is much faster.
    What was done about its colours, or couldn't be, goes to `notes`. With `channels` of 4 a TIFF's fourth is read also
    where it isn't said to be alpha. Raises BadImage, also for more than `most` pixels.
    """
    notes = [] if notes is None else notes
    with naming(source):
        picture = turned(source, draft, notes, channels, most)
        if isinstance(picture, np.ndarray) or picture.info.get(_AS_MEANT):
            return picture
        picture = in_srgb(picture, notes)
        picture.info[_AS_MEANT] = True
        return picture


def turned(
    source: Source,
    draft: int = 0,
    notes: Notes | None = None,
    channels: int | None = None,
    most: int | None = None,
) -> "Image | np.ndarray":
    """A picture as `open_image` gives it but for its colours."""
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, (str, Path, bytes)):
        return _open(bytes_of(source), draft, [] if notes is None else notes, channels, most or MAX_PIXELS)
    return source if getattr(source, "info", {}).get(_AS_MEANT) else _upright(source)


def open_map(source: Source) -> np.ndarray:
    """A picture of ids, (h, w) uint8: grey values or palette indices as they are. Raises BadImage."""
    with naming(source):
        values = np.asarray(turned(source))  # not in sRGB: ids are no colours
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]  # grey saved as colour
    if values.ndim != 2 or is_jpeg(source):
        raise BadImage(named(source, "isn't a map of ids: it has one channel or a palette and is no JPEG, which blurs"))
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() > 255:
        raise BadImage(named(source, f"holds {values.dtype} values; ids are whole numbers from 0 to 255"))
    return values.astype(np.uint8)


def probe(file: BinaryIO | str | Path, channels: int | None = None) -> tuple[int, int, int, int]:
    """(height, width, channels, bits) of a picture from its head, as `Preprocess` would best take it.

    Alpha doesn't count as a channel, a palette counts as three. `channels` tells which axis of an array has them, where
    that is known. Raises BadImage.
    """
    with naming(file), open(file, "rb") if isinstance(file, (str, Path)) else file as stream:
        magic = stream.read(len(_NPY))
        stream.seek(0)
        if magic == _NPY:
            return _probe_array(*_npy_header(stream), channels)
        check_metadata(stream, head_only=True)
        picture = _pillow(stream, channels, MAX_PIXELS)
        if picture is None:
            array = read_tiff(stream, [], MAX_PIXELS, head_only=True)
            check_channels(array.shape, channels)
            return *array.shape[:2], math.prod(array.shape[2:]), _bits(array.dtype)
        return _probe_picture(picture)


def shape_of_picture(picture: "Image") -> tuple[int, int]:
    """Height and width once it is turned as its EXIF says."""
    width, height = picture.size if picture.getexif().get(ORIENTATION, 1) < 5 else picture.size[::-1]
    return height, width


def pixels_of(picture: "Image", channels: int, background: Sequence[float]) -> np.ndarray:
    """A Pillow image as (H, W, C): grey, RGB, or with alpha for 2 and 4 channels; otherwise alpha is laid on."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[:, :, None]
    if picture.mode in ("I", "F"):
        values = np.asarray(picture)[:, :, None]
        fits = picture.mode == "I" and values.min() >= 0 and values.max() < 2**16
        return values.astype(np.uint16) if fits else values
    if picture.mode == "CMYK":
        picture = picture.convert("RGB")  # the plain complement: it has no profile that could be read
    if channels in (2, 4):
        return np.asarray(picture.convert("LA" if channels == 2 else "RGBA"))
    if channels not in (1, 3):
        raise BadImage(f"has {len(picture.getbands())} channels where {channels} are wanted")
    if picture.has_transparency_data:
        colour = [round(value) for value in (background if len(background) == 3 else [background[0]] * 3)]
        sheet = Image.new("RGBA", picture.size, (colour[0], colour[1], colour[2], 255))
        picture = Image.alpha_composite(sheet, picture.convert("RGBA"))
    values = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return values[:, :, None] if channels == 1 else values


def is_transparent(picture: "Image | np.ndarray") -> bool:
    """Whether some pixels of a Pillow image aren't opaque."""
    if isinstance(picture, np.ndarray) or not picture.has_transparency_data:
        return False
    return int(np.asarray(picture.convert("RGBA").getchannel("A")).min()) < 255


def named(source: Any, reason: str) -> str:
    """The reason with its file in front, where there is one."""
    return f"{source}: {reason}" if isinstance(source, (str, Path)) else reason


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Whatever Pillow's readers raise as BadImage, with the file's name."""
    try:
        yield
    except UserError as error:
        raise BadImage(named(source, str(error))) from None
    except Exception as error:
        raise BadImage(named(source, f"can't be read ({error})")) from error


def bytes_of(source: str | Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def is_jpeg(source: Source) -> bool:
    if isinstance(source, (str, Path, bytes)):
        return bytes_of(source).startswith(b"\xff\xd8")
    return getattr(source, "format", None) == "JPEG"


def _open(content: bytes, draft: int, notes: Notes, channels: int | None, most: int) -> "Image | np.ndarray":
    if content.startswith(_NPY):
        shape, dtype = _npy_header(io.BytesIO(content))
        if math.prod(shape) * dtype.itemsize > len(content):
            raise BadImage(f"says that it holds {shape} values, more than it has")
        return np.load(io.BytesIO(content), allow_pickle=False)
    stream = io.BytesIO(content)
    check_metadata(stream)
    picture: Any = _pillow(stream, channels, most)
    if picture is None:
        return read_tiff(stream, notes, most)
    if picture.format in _OF_SEVERAL and getattr(picture, "is_animated", False):
        notes.append(FIRST)
    if code := cicp(content):
        picture.info[CICP] = code
    if draft:
        picture.draft(None, (draft, draft))
    notes += [FOURTH] if has_fourth(picture) else []
    upright = _upright(picture)
    return inverted(upright, picture.tag_v2) if picture.format == "TIFF" and upright.mode[:2] == "I;" else upright


def _upright(picture: Any) -> "Image":
    """A copy, turned as its EXIF says."""
    from PIL import Image, ImageOps

    if not isinstance(picture, Image.Image):
        raise BadImage(f"a {type(picture).__name__} is no image: give a file, a PIL image or an array")
    is_cut = _is_cut(picture)  # which is known until its pixels are read
    turned = ImageOps.exif_transpose(picture)
    turned.info["ldm_cut_to_8_bits"] = is_cut or picture.info.get("ldm_cut_to_8_bits", False)
    return turned


def _is_cut(picture: "Image") -> bool:
    """Whether it is a PNG or PPM in colour of more than 8 bits, of which Pillow reads 8."""
    tile = str(getattr(picture, "tile", ""))
    if picture.format == "PPM":
        return any(int(top) > 255 for top in _MAXVAL.findall(tile))
    return picture.format == "PNG" and picture.mode in ("RGB", "RGBA") and ";16" in tile


def _pillow(stream: BinaryIO, channels: int | None, most: int) -> "Image | None":
    """The picture as Pillow opens it, or None for a TIFF that holds more than Pillow can.

    Pillow can: 8 bits of grey, colour or palette with alpha; 16 bits of grey; of several pages the first, which is
    enough unless they are grey and may be the channels of one picture, which pages of a fax or scanner never are.
    """
    from PIL import Image, UnidentifiedImageError

    head = stream.read(HEAD)
    stream.seek(0)
    be_quiet()
    try:
        picture: Any = Image.open(stream)
    except UnidentifiedImageError:
        if head[:4] in _TIFF:
            return None
        raise BadImage(what_it_is(head)) from None
    if picture.format in DRAWINGS:
        raise BadImage(f"is {picture.format}, which only another program could draw: save it as .png or .jpg")
    if picture.width * picture.height > most:
        size = f"{picture.width}x{picture.height}"
        raise BadImage(f"has {size} pixels, which are too many (up to {most // 10**6} million are read)")
    if is_preview(picture):
        raise BadImage("is a camera's raw data, which begins with a preview: develop it to .jpg, .png or .tif")
    if picture.format == "TIFF":
        bits, samples = max(picture.tag_v2.get(BITS, (1,))), picture.tag_v2.get(SAMPLES, 1)
        pages = picture.is_animated and picture.tag_v2.get(_COMPRESSION) not in _FAX
        grey = samples == 1 and (bits <= 8 or picture.mode.startswith("I;16")) and not pages
        if not grey and (bits > 8 or samples not in (3, 4)):
            return None
        if channels == 4 and has_fourth(picture):
            return None
    return picture


def _npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _probe_array(shape: tuple[int, ...], dtype: np.dtype, known: int | None) -> tuple[int, int, int, int]:
    height, width = shape_of_array(shape, known)
    return height, width, math.prod(shape) // max(1, height * width), _bits(dtype)


def _bits(dtype: np.dtype) -> int:
    return 8 if dtype in (np.uint8, np.bool_) else 16


def _probe_picture(picture: "Image") -> tuple[int, int, int, int]:
    height, width = shape_of_picture(picture)
    deep = picture.mode[0] in "IF"
    grey = deep or picture.mode in ("1", "L", "LA", "La")
    return height, width, 1 if grey else 3, 16 if deep else 8
