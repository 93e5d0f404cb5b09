"""Images on the canvas of the page: enlarged to be painted on, masked, and extended for outpainting."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

CANVAS = 384  # pixels; smaller images are enlarged to about this size to be painted on
MASK_COLOUR = (255, 45, 85, 153)  # of the mask on the canvas: translucent, so that the image is seen through it
MASK_ALPHA = MASK_COLOUR[3] // 2  # what is less opaque is the soft edge of a stroke


def canvas(image: "Path | Image | None", mask: "Path | Image | None" = None) -> dict[str, Any] | None:
    """What the image editor shows: an image, enlarged if it is small, with the mask painted on it."""
    from PIL import Image

    if image is None:
        return None
    ground = Image.open(image).convert("RGBA") if isinstance(image, Path) else image.convert("RGBA")
    times = max(1, CANVAS // max(ground.size))
    layers = []
    if mask is not None:
        white = (Image.open(mask) if isinstance(mask, Path) else mask).convert("L")
        white = white.resize((ground.width * times, ground.height * times), Image.Resampling.NEAREST)
        layer = Image.new("RGBA", white.size, (0, 0, 0, 0))
        layer.paste(Image.new("RGBA", white.size, MASK_COLOUR), mask=white)
        layers = [layer]
    return {"background": enlarge_pixels(ground, times), "layers": layers, "composite": None}


def painted_mask(layers: "Iterable[Image]") -> "Image | None":
    """The mask, white where the layers of the image editor were painted on; None if they are empty. The layers are
    read one at a time."""
    from PIL import Image, ImageChops

    mask = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value > MASK_ALPHA else 0)
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha.resize(mask.size, Image.Resampling.NEAREST))
    return mask if mask is not None and mask.getbbox() else None


def joined_masks(painted: "Image | None", uploaded: "Image", size: tuple[int, int]) -> "Image":
    """A mask of `size` (width, height), white where either is; of the uploaded one, what is lighter than grey."""
    from PIL import Image, ImageChops

    white = uploaded.convert("L").point(lambda value: 255 if value > 127 else 0)
    white = white.resize(size, Image.Resampling.NEAREST)
    return white if painted is None else ImageChops.lighter(painted.resize(size, Image.Resampling.NEAREST), white)


def extended(image: "Image", mask: "Image | None", edges: Mapping[str, int]) -> "tuple[Image, Image]":
    """An image with `edges` (pixels by left, right, top, bottom) added for outpainting, and the mask, white on them.

    The new pixels repeat those at the edge, which the model starts from where the strength is below 1.
    """
    import numpy as np
    from PIL import Image

    around = ((edges["top"], edges["bottom"]), (edges["left"], edges["right"]))
    pixels = np.pad(np.asarray(image.convert("RGB")), (*around, (0, 0)), mode="edge")
    inner = np.zeros((image.height, image.width), np.uint8) if mask is None else np.asarray(mask.convert("L"))
    return Image.fromarray(pixels), Image.fromarray(np.pad(inner, around, constant_values=255))


def undo_enlarging(image: "Image", size: tuple[int, int]) -> "Image":
    """Brings an image that `enlarge_pixels` enlarged back to `size` (width, height); leaves others unchanged."""
    import numpy as np
    from PIL import Image

    times = image.width // size[0]
    if times > 1 and image.size == (times * size[0], times * size[1]):
        small = image.resize(size, Image.Resampling.NEAREST)
        if np.array_equal(np.asarray(enlarge_pixels(small, times)), np.asarray(image)):
            return small
    return image


def enlarge_pixels(image: "Image", times: int) -> "Image":
    """Each pixel as a square of `times` by `times`."""
    from PIL import Image

    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
