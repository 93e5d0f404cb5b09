"""An image's own size, its crop and the size it is brought to as a condition: for training on images of mixed sizes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning.part import Part
from ldm.networks import Cond
from ldm.networks.layers import timestep_embedding

NUMBERS = 6
LARGEST = 65_536


@register
class ImageSize(Part):
    """Six numbers of each image, added to the time embedding as sinusoidal features, `features` of each: its height and
    width before it was prepared, top and left of what is kept of it (in pixels, once it is resized), and the height and
    width that it is brought to (Podell et al. 2023, SDXL, section 2.2). They are read off each image while it is
    prepared.

    So small images can be trained on beside large ones without that large blurred ones are learnt from them, and crops
    without that cut objects are: by default images are generated as large and uncropped ones. Nothing
    of it is learned but by the network, and guidance leaves it alone. `size` is read off the data.
    """

    column = "frame"
    follows_guidance = False

    def __init__(self, features: int = 256, size: list[int] | None = None):
        super().__init__(0.0)
        if features < 2:
            raise UserError(f"conditioner: features={features}: a number takes 2 or more.")
        self.features, self.vector_dim = features, NUMBERS * features
        self.size = (size[0], size[1]) if size else None

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"size": list(table.images.shape[2:])}

    def null_values(self, n: int) -> Tensor:
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        """Of images that were as large as they are, and uncropped."""
        height, width = size or self.size or (0, 0)
        if not height:
            raise UserError("the image's size isn't known: give size=(height, width).")
        return torch.tensor([[height, width, 0, 0, height, width]]).expand(n, -1)

    def parse(self, values: Any) -> Tensor:
        """Rows of six whole numbers -> (B, 6)."""
        return torch.stack([torch.as_tensor(value).long() for value in values])

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        return Cond(vector=timestep_embedding(values.flatten(), self.features).view(len(values), -1))


def framed(
    size: tuple[int, int],
    original_size: Any = None,
    crop: Any = None,
    target_size: Any = None,
) -> list[int]:
    """The six numbers of an image of `size` (height, width) that is to be taken for one of these sizes."""
    original = _pair(original_size, "original_size", 1) if original_size is not None else size
    target = _pair(target_size, "target_size", 1) if target_size is not None else size
    corner = _pair(crop, "crop", 0) if crop is not None else (0, 0)
    return [*original, *corner, *target]


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, (list, tuple)) else []
    if len(pair) != 2 or not all(isinstance(v, int) and least <= v <= LARGEST for v in pair):
        what = "(top, left)" if name == "crop" else "(height, width)"
        raise UserError(f"{name}={value}: give {what} in pixels, whole numbers from {least} to {LARGEST}.")
    return pair[0], pair[1]
