"""Size, channels and bits of images, from the heads of their files."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ldm.images.files.axes import check_channels, shape_of_array
from ldm.images.files.metadata import check_metadata
from ldm.images.files.numpy_files import NPY, npy_header
from ldm.images.files.pillow import open_by_pillow, shape_of_image
from ldm.images.files.reading import MAX_PIXELS
from ldm.images.files.sources import naming
from ldm.images.files.tiff import read_tiff

if TYPE_CHECKING:
    from PIL.Image import Image


def probe(file: BinaryIO | str | Path, channels: int | None = None) -> tuple[int, int, int, int]:
    """(height, width, channels, bits) that suit an image best as options of `Preprocess`, from its head.

    Alpha doesn't count as a channel, and a palette counts as three. `channels`, if it is known, tells which axis of an
    array has the channels. Raises BadImage.
    """
    with naming(file), open(file, "rb") if isinstance(file, (str, Path)) else file as stream:
        magic = stream.read(len(NPY))
        stream.seek(0)
        if magic == NPY:
            shape, dtype = npy_header(stream)
            height, width = shape_of_array(shape, channels)
            return height, width, math.prod(shape) // max(1, height * width), _bits(dtype)
        check_metadata(stream, head_only=True)
        image = open_by_pillow(stream, channels, MAX_PIXELS)
        if image is not None:
            return _probe_image(image)
        array = read_tiff(stream, [], MAX_PIXELS, head_only=True)
        check_channels(array.shape, channels)
        return *array.shape[:2], math.prod(array.shape[2:]), _bits(array.dtype)


def _bits(dtype: np.dtype) -> int:
    return 8 if dtype in (np.uint8, np.bool_) else 16


def _probe_image(image: "Image") -> tuple[int, int, int, int]:
    height, width = shape_of_image(image)
    is_deep = image.mode[0] in "IF"
    is_grey = is_deep or image.mode in ("1", "L", "LA", "La")
    return height, width, 1 if is_grey else 3, 16 if is_deep else 8
