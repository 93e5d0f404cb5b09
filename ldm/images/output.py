"""Pictures for people: grids, and PNGs that carry text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

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


def save_png(picture: "Image", path: str | Path, text: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG whose text chunks hold `text`, as UTF-8 where it isn't ASCII."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        (info.add_text if str(value).isascii() else info.add_itxt)(key, str(value))
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
