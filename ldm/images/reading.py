"""Reading picture files as they are meant: turned, with their colours, in all their bits.

Pillow reads what it can hold; .npy and TIFF (the `tiff` extra) hold the rest: Pillow has no 16-bit colour and no more
than four channels.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .npy .ppm .pgm .pbm .pnm .avif .jp2 .tga .jfif".split()  # noqa: SIM905
)
MAX_PIXELS = 2**27  # beyond this a file is taken for a decompression bomb
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on it swaps the sides
_BITS, _SAMPLES = 258, 277  # TIFF's tags
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class BadImage(UserError):
    """A file that isn't a picture that can be taken: its path and why."""


def open_image(source: str | Path | bytes, draft: int = 0) -> "Image | np.ndarray":
    """A picture from a file or its bytes: a Pillow image, turned as its EXIF says, or an array from .npy and TIFF.

    With `draft` a JPEG may be decoded at a fraction of its size, no side below `draft` pixels, which is much faster.
    Raises BadImage.
    """
    try:
        return _open(_bytes(source), draft)
    except UserError as error:
        raise BadImage(named(source, str(error))) from None
    except Exception as error:  # Pillow's readers raise anything
        raise BadImage(named(source, f"can't be read ({error})")) from error


def open_map(source: str | Path | bytes) -> np.ndarray:
    """A picture of ids, (h, w) uint8: grey values or palette indices as they are. Raises BadImage."""
    values = np.asarray(open_image(source))
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]  # grey saved as colour
    if values.ndim != 2 or _bytes(source).startswith(b"\xff\xd8"):
        raise BadImage(named(source, "isn't a map of ids: it has one channel or a palette and is no JPEG, which blurs"))
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() > 255:
        raise BadImage(named(source, f"holds {values.dtype} values; ids are whole numbers from 0 to 255"))
    return values.astype(np.uint8)


def open_mask(source: str | Path | bytes) -> np.ndarray:
    """A picture of yes and no, (h, w) uint8 of 0 and 255, cut at half; 0 and 1 will do too. Raises BadImage."""
    picture = open_image(source)
    values = picture if isinstance(picture, np.ndarray) else pixels_of(picture, 1, (0,))
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2:
        raise BadImage(named(source, f"has shape {values.shape}; a mask has one channel"))
    top = np.iinfo(values.dtype).max if values.dtype.kind in "ui" and values.max() > 1 else values.max()
    return np.where(values > top / 2, 255, 0).astype(np.uint8)


def probe(file: BinaryIO | str | Path) -> tuple[int, int, int, int]:
    """(height, width, channels, bits) of a picture from its head, as `Preprocess` would best take it.

    Alpha doesn't count as a channel, a palette counts as three. Raises BadImage.
    """
    try:
        with open(file, "rb") if isinstance(file, (str, Path)) else file as stream:
            magic = stream.read(len(_NPY))
            stream.seek(0)
            if magic == _NPY:
                return _probe_array(*_npy_header(stream))
            picture = _pillow(stream)
            if picture is None:
                array = _tiff(stream, head_only=True)
                return _probe_array(array.shape, array.dtype)
            return _probe_picture(picture)
    except UserError as error:
        raise BadImage(named(file, str(error))) from None
    except Exception as error:  # Pillow's readers raise anything
        raise BadImage(named(file, f"can't be read ({error})")) from error


def channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C); where both ends fit, the last axis is taken for the channels."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise BadImage(f"has shape {array.shape}; an image has (H, W), (H, W, C) or (C, H, W)")
    if array.shape[2] != channels and array.shape[0] in (1, channels):
        return array.transpose(1, 2, 0)
    return array


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
        picture = _from_cmyk(picture)
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


def named(source: Any, reason: str) -> str:
    """The reason with its file in front, where there is one."""
    return f"{source}: {reason}" if isinstance(source, (str, Path)) else reason


def _bytes(source: str | Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _open(content: bytes, draft: int) -> "Image | np.ndarray":
    from PIL import ImageOps

    if content.startswith(_NPY):
        shape, dtype = _npy_header(io.BytesIO(content))
        if math.prod(shape) * dtype.itemsize > len(content):
            raise BadImage(f"says that it holds {shape} values, more than it has")
        return np.load(io.BytesIO(content), allow_pickle=False)
    stream = io.BytesIO(content)
    picture: Any = _pillow(stream)
    if picture is None:
        return _tiff(stream)
    deep = picture.format == "PNG" and picture.mode in ("RGB", "RGBA") and ";16" in str(picture.tile)
    if draft:
        picture.draft(None, (draft, draft))
    turned = ImageOps.exif_transpose(picture)
    turned.info["cut_to_8_bits"] = deep
    return turned


def _pillow(stream: BinaryIO) -> "Image | None":
    """The picture as Pillow opens it, or None for a TIFF that holds more than Pillow can.

    Pillow can: 8 bits of grey, colour or palette with alpha; 16 bits of grey; of several pages the first, which is
    enough unless they are grey and may be the channels of one picture.
    """
    from PIL import Image, UnidentifiedImageError

    magic = stream.read(4)
    stream.seek(0)
    try:
        picture: Any = Image.open(stream)
    except UnidentifiedImageError:
        if magic in _TIFF:
            return None
        raise BadImage("isn't a picture of a known kind") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise BadImage(f"{picture.width}x{picture.height} pixels are too many")
    if picture.format == "TIFF":
        bits, samples = max(picture.tag_v2.get(_BITS, (1,))), picture.tag_v2.get(_SAMPLES, 1)
        grey = samples == 1 and (bits <= 8 or picture.mode.startswith("I;16")) and picture.n_frames == 1
        if not grey and (bits > 8 or samples not in (3, 4)):
            return None
    return picture


def _tiff(stream: BinaryIO, head_only: bool = False) -> np.ndarray:
    """A TIFF's first picture (H, W) or (H, W, C); without its values (zeros that take no memory) if `head_only`."""
    try:
        import tifffile
    except ImportError:
        raise BadImage("is a TIFF that Pillow can't hold; for these: pip install tifffile") from None
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        first: Any = file.series[0]
        if set(first.axes) & set("ITZ"):  # a row of pages, of times or of depths
            first = file.pages[0]
        other = [i for i, axis in enumerate(first.axes) if axis not in "YX"]
        if np.prod([first.shape[first.axes.index(axis)] for axis in "YX"]) > MAX_PIXELS:
            raise BadImage(f"{first.shape} pixels are too many")
        array = np.broadcast_to(first.dtype.type(0), first.shape) if head_only else first.asarray()
    return np.moveaxis(array, other, range(-len(other), 0)) if other else array


def _npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _probe_array(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int]:
    bits = 8 if dtype in (np.uint8, np.bool_) else 16
    if len(shape) == 2:
        return shape[0], shape[1], 1, bits
    if len(shape) != 3:
        raise BadImage(f"has shape {shape}; an image has (H, W), (H, W, C) or (C, H, W)")
    if shape[0] < shape[2]:  # the shorter end is the channels'
        return shape[1], shape[2], shape[0], bits
    return shape[0], shape[1], shape[2], bits


def _probe_picture(picture: "Image") -> tuple[int, int, int, int]:
    width, height = picture.size if picture.getexif().get(_ORIENTATION, 1) < 5 else picture.size[::-1]
    deep = picture.mode[0] in "IF"
    grey = deep or picture.mode in ("1", "L", "LA", "La")
    return height, width, 1 if grey else 3, 16 if deep else 8


def _from_cmyk(picture: "Image") -> "Image":
    """CMYK as sRGB: by the file's own colour profile where it has one, by the plain complement otherwise."""
    from PIL import ImageCms

    profile = picture.info.get("icc_profile")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile is no reason to lose the picture
    return picture.convert("RGB")
