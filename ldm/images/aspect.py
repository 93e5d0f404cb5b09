"""The aspect ratios of images that belong together, such as an image and its map, mask or control image.

Each is resized to the model's size and cropped at the centre separately, so one with a different aspect ratio would be
cropped differently, and would no longer match the others. A different size with the same aspect ratio is fine.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.images.files.axes import shape_of_array
from ldm.images.files.pillow import shape_of_image
from ldm.images.files.probing import probe

TOLERANCE = 0.05  # of the aspect: sizes are rounded to whole pixels, and to blocks
Shape = tuple[int, int]  # height, width


def shape_of(item: Any, channels: int | None = None) -> Shape:
    """Height and width of a PIL image, an array, a tensor (..., H, W), or a file or its bytes, of which only the head
    is read.

    `channels`, if known, tells which axis of an array has the channels. Raises BadImage.
    """
    if isinstance(item, bytes):
        return probe(io.BytesIO(item), channels)[:2]
    if isinstance(item, np.ndarray):
        return shape_of_array(item.shape, channels)
    if hasattr(item, "getexif"):
        return shape_of_image(item)
    return (item.shape[-2], item.shape[-1]) if hasattr(item, "shape") else probe(item)[:2]


def alike(a: Shape, b: Shape) -> bool:
    """Whether two shapes (height, width) have the same aspect ratio, within TOLERANCE."""
    return abs(a[0] * b[1] - b[0] * a[1]) <= TOLERANCE * max(a[0] * b[1], b[0] * a[1])


def check_alike(given: Mapping[str, Any], fits: Shape) -> None:
    """Raises UserError unless all images have the aspect ratio of the first.

    `given` maps names, which messages use, to an image, a list of images or None. Two lists are compared image by
    image; an image of a shorter list belongs to several of the longer one. A tensor with the model's own shape `fits`
    is cropped already, and isn't compared.
    """
    named = {name: _items(value) for name, value in given.items() if value is not None}
    first = next(iter(named), "")
    for name, items in list(named.items())[1:]:
        for a, b in _pairs(named[first], items):
            if _cropped(a, fits) or _cropped(b, fits):
                continue
            (h, w), (height, width) = shape_of(a), shape_of(b)
            if not alike((h, w), (height, width)):
                raise UserError(
                    f"the {first} is {h}x{w}, the {name} {height}x{width} (height x width): cropped to the model's "
                    "aspect ratio, they wouldn't match; give both the same aspect ratio."
                )


def _cropped(item: Any, fits: Shape) -> bool:
    tensor = hasattr(item, "shape") and not isinstance(item, np.ndarray)
    return tensor and tuple(item.shape[-2:]) == fits


def _items(value: Any) -> list[Any]:
    many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 4
    return list(value) if many else [value]


def _pairs(a: list[Any], b: list[Any]) -> list[tuple[Any, Any]]:
    n = max(len(a), len(b)) if a and b else 0
    return [(a[i * len(a) // n], b[i * len(b) // n]) for i in range(n)]
