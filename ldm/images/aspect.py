"""Images that lie over each other, an image and its map, mask or control image, must show the same part of a scene.

Each is brought to the model's size by itself and cropped at the centre, so one of another aspect would be cropped
unlike the others and nothing would lie where it belongs. Another size of the same aspect is fine.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.images.axes import shape_of_array
from ldm.images.reading import probe, shape_of_picture

TOLERANCE = 0.05  # of the aspect: sizes are rounded to whole pixels, and to blocks
Shape = tuple[int, int]  # height, width


def shape_of(item: Any, channels: int | None = None) -> Shape:
    """Height and width of a picture: a file or its bytes (only the head is read), a PIL image, an array, of so many
    channels if that is known, or a tensor (..., H, W). Raises BadImage."""
    if isinstance(item, bytes):
        return probe(io.BytesIO(item), channels)[:2]
    if isinstance(item, np.ndarray):
        return shape_of_array(item.shape, channels)
    if hasattr(item, "getexif"):
        return shape_of_picture(item)
    return (item.shape[-2], item.shape[-1]) if hasattr(item, "shape") else probe(item)[:2]


def alike(a: Shape, b: Shape) -> bool:
    """Whether two shapes (height, width) have one aspect."""
    return abs(a[0] * b[1] - b[0] * a[1]) <= TOLERANCE * max(a[0] * b[1], b[0] * a[1])


def check_alike(given: Mapping[str, Any], fits: Shape) -> None:
    """Raises UserError unless what is given by name, an image or a list of them or None, has the aspect of the first.

    Of lists the i-th are held against each other; of fewer each stands for as many as there are to one. A tensor of the
    shape `fits`, the model's own, has been cropped already and lies over any.
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
                    "aspect they wouldn't lie over each other; give both the same aspect."
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
