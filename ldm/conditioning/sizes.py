"""The original size of an image, its crop and its final size as a condition, for training on images of mixed sizes."""

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
    """Six numbers of each image, added to the time embedding as sinusoidal features (Podell et al. 2023, SDXL, 2.2).

    They are its original height and width, top and left of the crop (in pixels of the resized image), and its final
    height and width, with `features` features each. They are recorded when the image is preprocessed.

    So a model can be trained on small images without learning to generate blurred ones, and on crops without learning
    to cut objects off: by default images are generated as large and uncropped. This condition has no weights, and
    guidance doesn't apply to it. `size` is derived from the data.
    """

    column = "frame"
    follows_guidance = False

    def __init__(self, features: int = 256, size: list[int] | None = None):
        super().__init__(0.0)
        if features < 2:
            raise UserError(f"conditioner: features={features}: give at least 2 for each number.")
        self.features, self.vector_dim = features, NUMBERS * features
        self.size = (size[0], size[1]) if size else None

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size (height, width) of the data's images."""
        return {"size": list(table.images.shape[2:])}

    def null_values(self, n: int) -> Tensor:
        """The numbers (n, 6) of uncropped images of the training data's size."""
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        """The numbers (n, 6) of uncropped images whose original size is `size` (height, width) too."""
        height, width = size or self.size or (0, 0)
        if not height:
            raise UserError("the image's size is unknown: give size=(height, width).")
        return torch.tensor([[height, width, 0, 0, height, width]]).expand(n, -1)

    def parse(self, values: Any) -> Tensor:
        """Rows of six whole numbers -> (B, 6)."""
        return torch.stack([torch.as_tensor(value).long() for value in values])

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Numbers (B, 6) -> `vector` (B, 6 features)."""
        return Cond(vector=timestep_embedding(values.flatten(), self.features).view(len(values), -1))


def framed(
    size: tuple[int, int],
    original_size: Any = None,
    crop: Any = None,
    target_size: Any = None,
    prefix: str = "",
) -> list[int]:
    """The six numbers of an image generated at `size` (height, width).

    Original and target size default to `size`, the crop's top and left to (0, 0). Raises UserError for other values
    than one or two whole numbers; `prefix` precedes their names in it.
    """
    original = _pair(original_size, f"{prefix}original_size", 1) if original_size is not None else size
    target = _pair(target_size, f"{prefix}target_size", 1) if target_size is not None else size
    corner = _pair(crop, f"{prefix}crop", 0) if crop is not None else (0, 0)
    return [*original, *corner, *target]


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, (list, tuple)) else []
    if len(pair) != 2 or not all(isinstance(v, int) and least <= v <= LARGEST for v in pair):
        what = "(top, left)" if name.endswith("crop") else "(height, width)"
        raise UserError(f"{name}={value}: give {what} in pixels, whole numbers from {least} to {LARGEST}.")
    return pair[0], pair[1]
