"""Pictures for people: grids, and PNGs that carry text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.annotations import replace_surrogates
from ldm.common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def grid(images: Tensor, columns: int, gap: int = 2) -> "Image":
    """(N, C, H, W) in [-1, 1] as one picture of 8 bits, row by row, white between; of many channels the first three."""
    n, channels, height, width = images.shape
    shown = images[:, : 1 if channels < 3 else 3].detach().float().cpu()
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    sheet = torch.ones(shown.shape[1], rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(shown):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_pil8(sheet)


class Pictures(list):
    """A list of PIL images that shows itself in a notebook, as one grid."""

    def grid(self, columns: int | None = None, gap: int = 2) -> "Image":
        """All pictures as one, row by row, white between; by default near a square of at most 8 columns."""
        from PIL import Image

        if not self:
            raise UserError("there are no pictures to show.")
        columns = columns or min(8, math.ceil(math.sqrt(len(self))))
        shown = [_in_8_bits(picture) for picture in self]
        width, height = (max(picture.size[i] for picture in shown) + gap for i in (0, 1))
        columns = min(columns, len(shown))
        sheet = Image.new("RGB", (columns * width + gap, -(-len(shown) // columns) * height + gap), "white")
        for i, picture in enumerate(shown):
            sheet.paste(picture, (gap + i % columns * width, gap + i // columns * height))
        return sheet

    def _repr_png_(self) -> bytes | None:
        return self.grid()._repr_png_() if self else None


def _in_8_bits(picture: "Image") -> "Image":
    """`convert` alone would clip 16 bits to white."""
    from PIL import Image

    deep = picture.mode.startswith("I")
    return (Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)) if deep else picture).convert("RGB")


def save_png(picture: "Image", path: str | Path, text: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG whose text chunks hold `text`, as UTF-8 where it isn't ASCII."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        words = replace_surrogates(str(value))
        (info.add_text if words.isascii() else info.add_itxt)(key, words)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    picture.save(part, format="PNG", pnginfo=info)
    part.replace(path)


def to_pil8(image: Tensor) -> "Image":
    """(C, H, W) with 1 or 3 channels, in [-1, 1], as grey or RGB of 8 bits."""
    from PIL import Image

    values = image.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
