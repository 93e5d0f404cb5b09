"""Images by Pillow: opening them, their orientation, and their pixels as arrays."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ldm.images.files.tiff import BITS, ORIENTATION, SAMPLES, has_fourth, is_preview, silence_readers
from ldm.images.files.unreadable import DRAWINGS, HEAD, BadImage, kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

CUT = "ldm_cut_to_8_bits"  # in an image's info: whether its file has more bits than Pillow has read
_COMPRESSION, _FAX = 259, (2, 3, 4)  # TIFF's tag, and compressions of faxes
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PPM_MAXIMUM = re.compile(r"'RGB', (\d+)\)")  # in Pillow's description of how it decodes a PPM


def open_by_pillow(stream: BinaryIO, channels: int | None, max_pixels: int) -> "Image | None":
    """The image as Pillow opens it, or None for a TIFF that holds more than Pillow can represent.

    Pillow represents grey, colour and palettes of 8 bits with alpha, and grey of 16 bits. In a file with several pages
    it reads the first. That suffices unless the pages are grey and may be the channels of one image, which pages of a
    fax or scanner never are. `channels` is the wanted number, if known. Raises BadImage, also for more than
    `max_pixels` pixels.
    """
    from PIL import Image, UnidentifiedImageError

    head = stream.read(HEAD)
    stream.seek(0)
    silence_readers()
    try:
        image: Any = Image.open(stream)
    except UnidentifiedImageError:
        if head[:4] in _TIFF:
            return None
        raise BadImage(kind_of(head)) from None
    if image.format in DRAWINGS:
        raise BadImage(f"is {image.format}, which only another program can render: save it as .png or .jpg")
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise BadImage(f"has {size} pixels, which are too many (up to {max_pixels // 10**6} million are read)")
    if is_preview(image):
        raise BadImage("is a camera's raw data, which begins with a preview: develop it to .jpg, .png or .tif")
    return None if image.format == "TIFF" and _holds_more(image, channels) else image


def _holds_more(image: Any, channels: int | None) -> bool:
    """Whether a TIFF holds more than Pillow can represent."""
    bits, samples = max(image.tag_v2.get(BITS, (1,))), image.tag_v2.get(SAMPLES, 1)
    has_pages = image.is_animated and image.tag_v2.get(_COMPRESSION) not in _FAX
    is_grey = samples == 1 and (bits <= 8 or image.mode.startswith("I;16")) and not has_pages
    if not is_grey and (bits > 8 or samples not in (3, 4)):
        return True
    return channels == 4 and has_fourth(image)


def upright(image: Any) -> "Image":
    """A copy of a Pillow image, turned as its EXIF says. Raises BadImage for anything else."""
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise BadImage(f"{type(image).__name__} isn't an image: give a file, a PIL image or an array")
    is_cut = _is_cut(image)  # only known to Pillow until it reads the pixels
    turned = ImageOps.exif_transpose(image)
    turned.info[CUT] = is_cut or image.info.get(CUT, False)
    return turned


def _is_cut(image: "Image") -> bool:
    """Whether the image is a PNG or PPM in colour with more than 8 bits, which Pillow would reduce to 8."""
    tile = str(getattr(image, "tile", ""))
    if image.format == "PPM":
        return any(int(maximum) > 255 for maximum in _PPM_MAXIMUM.findall(tile))
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16" in tile


def shape_of_image(image: "Image") -> tuple[int, int]:
    """Height and width once the image is turned as its EXIF says."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION, 1) < 5 else (width, height)


def pixels_of(image: "Image", channels: int, background: Sequence[float]) -> np.ndarray:
    """A Pillow image as (H, W, C): grey or RGB, with alpha for 2 and 4 channels. For 1 and 3 channels transparency is
    blended with the background. Raises BadImage for other numbers of channels."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None]
    if image.mode in ("I", "F"):
        values = np.asarray(image)[:, :, None]
        fits = image.mode == "I" and values.min() >= 0 and values.max() < 2**16
        return values.astype(np.uint16) if fits else values
    if image.mode == "CMYK":
        image = image.convert("RGB")  # by Pillow's simple formula, as it has no profile that could be read
    if channels in (2, 4):
        return np.asarray(image.convert("LA" if channels == 2 else "RGBA"))
    if channels not in (1, 3):
        raise BadImage(f"has {len(image.getbands())} channels where {channels} are wanted")
    if image.has_transparency_data:
        image = _on_background(image, background)
    values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return values[:, :, None] if channels == 1 else values


def _on_background(image: "Image", background: Sequence[float]) -> "Image":
    from PIL import Image

    colour = background if len(background) == 3 else [background[0]] * 3
    red, green, blue = (round(value) for value in colour)
    return Image.alpha_composite(Image.new("RGBA", image.size, (red, green, blue, 255)), image.convert("RGBA"))


def is_transparent(image: "Image | np.ndarray") -> bool:
    """Whether some pixels of a Pillow image aren't opaque."""
    if isinstance(image, np.ndarray) or not image.has_transparency_data:
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255
