"""Images for display: grids, and PNGs with text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm.common.annotations import replace_surrogates
from ldm.common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def grid(images: Tensor, columns: int, gap: int = 2) -> "Image":
    """Images (N, C, H, W) in [-1, 1] as one image of 8 bits, row by row with white gaps.

    If there are more than three channels, it shows the first three.
    """
    n, channels, height, width = images.shape
    shown = images[:, : 1 if channels < 3 else 3].detach().float().cpu()
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    sheet = torch.ones(shown.shape[1], rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(shown):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_pil8(sheet)


class ImageList(list):
    """A list of PIL images that a notebook displays as one grid."""

    def grid(self, columns: int | None = None, gap: int = 2) -> "Image":
        """All images as one, row by row with white gaps; by default nearly a square, with at most 8 columns."""
        from PIL import Image

        if not self:
            raise UserError("there are no images to show: generate some.")
        columns = columns or min(8, math.ceil(math.sqrt(len(self))))
        shown = [_in_8_bits(image) for image in self]
        width = max(image.width for image in shown) + gap
        height = max(image.height for image in shown) + gap
        columns = min(columns, len(shown))
        sheet = Image.new("RGB", (columns * width + gap, -(-len(shown) // columns) * height + gap), "white")
        for i, image in enumerate(shown):
            sheet.paste(image, (gap + i % columns * width, gap + i // columns * height))
        return sheet

    def _repr_png_(self) -> bytes | None:
        return self.grid()._repr_png_() if self else None


def _in_8_bits(image: "Image") -> "Image":
    """The image in RGB of 8 bits; `convert` alone would clip 16 bits to white."""
    from PIL import Image

    deep = image.mode.startswith("I")
    return (Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image).convert("RGB")


def save_png(image: "Image", path: str | Path, text: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG with `text` in its text chunks, in UTF-8 where it isn't ASCII."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        words = replace_surrogates(str(value))
        if words.isascii():
            info.add_text(key, words)
        else:
            info.add_itxt(key, words)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    image.save(part, format="PNG", pnginfo=info)
    part.replace(path)


def to_pil8(image: Tensor) -> "Image":
    """An image (C, H, W) in [-1, 1] with 1 or 3 channels, as grey or RGB of 8 bits."""
    from PIL import Image

    values = image.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
    if len(values) == 1:
        return Image.fromarray(values[0])
    return Image.fromarray(np.ascontiguousarray(rearrange(values, "c h w -> h w c")))
