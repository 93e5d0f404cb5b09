"""A map of classes as a condition: concatenated with the latent, or as tokens to attend to."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning.part import Part
from ldm.networks import Cond

RESIZE = ("area", "nearest", "unshuffle")
Size = tuple[int, int]


class MapPart(Part):
    """The base of both forms. The column has class ids (B, H, W); the id `classes` is the null class."""

    column = "map"

    def __init__(self, classes: int, names: list[str] | None, size: list[int] | None, drop_prob: float):
        super().__init__(drop_prob)
        self.classes, self.names = classes, list(names or [])
        self.size = (size[0], size[1]) if size else None

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Size, number and names of the data's classes. Without names the number is one more than the highest id."""
        names = [str(name) for name in table.map_classes]
        count = len(names) or int(table.columns["map"].max()) + 1
        return {"classes": count, "names": names, "size": list(table.images.shape[2:])}

    def null_values(self, n: int) -> Tensor:
        """Maps (n, H, W) of the null class, for the size of the training data."""
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: Size | None) -> Tensor:
        """Maps (n, H, W) of the null class, for images of `size` (height, width)."""
        size = size or self.size
        if size is None:
            raise UserError("the map's size is unknown: give size=(height, width).")
        return torch.full((n, *size), self.classes)

    def parse(self, values: Any) -> Tensor:
        """Maps (H, W) of ids -> (B, H, W) int64. Raises UserError for an id that the model doesn't know."""
        maps = torch.stack([torch.as_tensor(value).long() for value in values])
        if maps.ndim != 3:
            raise UserError(f"a map is {tuple(maps.shape[1:])}: give one class id for each pixel, as (height, width).")
        if maps.min() < 0 or maps.max() >= self.classes:
            worst = int(maps.max() if maps.max() >= self.classes else maps.min())
            raise UserError(f"the map has class {worst}; this model knows 0 to {self.classes - 1}{self._named()}.")
        return maps

    def dropped(self, values: Tensor, drop: Tensor | None) -> Tensor:
        """`values` (B, H, W) with the null class everywhere in the samples where `drop` (B,) is True."""
        return values if drop is None else values.masked_fill(drop[:, None, None], self.classes)

    def one_hot(self, values: Tensor) -> Tensor:
        """(B, H, W) ids -> (B, classes, H, W) of 0 and 1; all 0 for the null class."""
        ids = torch.arange(self.classes, device=values.device)[:, None, None]
        return (values[:, None] == ids).float()

    def _named(self) -> str:
        return f" ({', '.join(self.names[:12])}{', ...' if len(self.names) > 12 else ''})" if self.names else ""


@register
class SemanticMap(MapPart):
    """A map of classes at the latent's resolution, concatenated with it (Rombach et al. 2022, section 4.3.2).

    A latent covers `factor` x `factor` pixels. `resize` decides how their classes are represented: "area" gives the
    share of each class, "nearest" the class of the pixel in the middle, "unshuffle" the class of every pixel in
    channels of its own. With `embed` a class is a learned vector of that length (with "unshuffle", `embed` factor^2
    channels); without it each class is a channel. The null condition is zero everywhere. `classes`, `names`, `size` and
    `factor` are derived from the data and the first stage.
    """

    def __init__(
        self,
        classes: int,
        factor: int = 1,
        names: list[str] | None = None,
        size: list[int] | None = None,
        resize: str = "area",
        embed: int | None = None,
        drop_prob: float = 0.1,
    ):
        super().__init__(classes, names, size, drop_prob)
        if resize not in RESIZE:
            raise UserError(f"resize={resize} is unknown for a map.{did_you_mean(resize, RESIZE)}")
        self.factor, self.resize = factor, resize
        self.embedding = nn.Parameter(torch.randn(embed, classes)) if embed else None
        self.concat_channels = (embed or classes) * (factor**2 if resize == "unshuffle" else 1)

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The first stage's factor."""
        return {"factor": first_stage.factor}

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Class ids (B, H, W) -> `concat` (B, concat_channels, h, w)."""
        f = self.factor
        values = self.dropped(values, drop)  # (B, H, W)
        if self.resize == "nearest":
            values = values[:, f // 2 :: f, f // 2 :: f]  # (B, h, w)
        planes = self.one_hot(values)  # (B, K, H, W), nearest: (B, K, h, w)
        if self.resize == "area":
            planes = F.avg_pool2d(planes, f)  # (B, K, h, w)
        if self.embedding is not None:  # linear, so that an average of classes is the average of their vectors
            planes = torch.einsum("bkhw,ek->behw", planes, self.embedding)  # (B, E, ., .)
        if self.resize == "unshuffle":
            planes = F.pixel_unshuffle(planes, f)  # (B, E f^2, h, w)
        return Cond(concat=planes)


@register
class MapTokens(MapPart):
    """A map of classes as `grid` x `grid` tokens for cross-attention.

    Each token is a linear map of the classes' shares in its cell of the image, plus a learned position. It works for
    images of any size, and is less exact about edges than `SemanticMap`.
    """

    def __init__(
        self,
        classes: int,
        names: list[str] | None = None,
        size: list[int] | None = None,
        grid: int = 8,
        dim: int = 128,
        drop_prob: float = 0.1,
    ):
        super().__init__(classes, names, size, drop_prob)
        self.grid, self.token_dim = grid, dim
        self.embedding = nn.Linear(classes, dim)
        self.place = nn.Parameter(0.5 * torch.randn(grid * grid, dim))

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Class ids (B, H, W) -> `tokens` (B, grid^2, D)."""
        shares = F.adaptive_avg_pool2d(self.one_hot(self.dropped(values, drop)), self.grid)  # (B, K, grid, grid)
        tokens = self.embedding(rearrange(shares, "b k h w -> b (h w) k")) + self.place  # (B, grid^2, D)
        return Cond(tokens=tokens, mask=tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
