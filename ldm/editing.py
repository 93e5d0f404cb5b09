"""Images to begin from: what image to image and inpainting are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.images import Preprocess, open_map, open_mask
from ldm.registry import build, spec_of


@dataclass(frozen=True)
class Start:
    """`image` (B, C, H, W) in [-1, 1], changed by `strength`; with `mask` (B, 1, H, W) only where that is 1."""

    image: Tensor
    mask: Tensor | None = None
    strength: float = 0.8
    feather: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength} has to lie between 0 (the image) and 1 (ignores it).")
        if self.mask is not None and self.mask.shape[2:] != self.image.shape[2:]:
            mask, image = tuple(self.mask.shape[2:]), tuple(self.image.shape[2:])
            raise UserError(f"the mask is {mask}, the image {image}: give them one size.")

    def repeated(self, n: int) -> "Start":
        """One image for each of `n` pictures."""
        return self._map(lambda t: _repeated(t, n))

    def padded(self, pad: int | Sequence[int] | None) -> "Start":
        """With a margin to be drawn: `pad` pixels on every side, or (left, top, right, bottom)."""
        if pad is None:
            return self
        sides = [pad] * 4 if isinstance(pad, int) else [int(p) for p in pad]
        if len(sides) != 4 or min(sides) < 0:
            raise UserError(f"pad={pad}: give one number of pixels, or four: left, top, right, bottom.")
        left, top, right, bottom = sides
        mask = self.mask if self.mask is not None else torch.zeros_like(self.image[:, :1])
        image = F.pad(self.image, (left, right, top, bottom), mode="replicate")
        return Start(image, F.pad(mask, (left, right, top, bottom), value=1.0), self.strength, self.feather)

    def take(self, rows: Tensor) -> "Start":
        return self._map(lambda t: t[rows.to(t.device)])

    def kept_latents(self, size: Sequence[int]) -> Tensor:
        """(B, 1, h, w): 1 where no pixel that the latent stands for is to be drawn anew."""
        assert self.mask is not None
        return 1 - F.adaptive_max_pool2d(self.mask, list(size))

    def paste(self, images: Tensor) -> Tensor:
        """`images` with the kept pixels put back exactly; the edge blended over `feather` pixels inside the mask."""
        if self.mask is None:
            return images
        new = self.mask
        if self.feather > 0:
            width = 2 * self.feather + 1
            new = new * F.avg_pool2d(F.pad(new, [self.feather] * 4, mode="replicate"), width, stride=1)
        return torch.where(new > 0, torch.lerp(self.image, images, new), self.image)

    def _map(self, function: Any) -> "Start":
        mask = None if self.mask is None else function(self.mask)
        return Start(function(self.image), mask, self.strength, self.feather)


def read_images(given: Any, preprocess: Preprocess) -> Tensor:
    """Pictures, files, arrays, or a tensor (B, C, H, W) or (C, H, W) in [-1, 1], as the latter with a batch
    dimension."""
    if isinstance(given, Tensor):
        return given[None] if given.ndim == 3 else given
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    return preprocess.to_tensor(np.stack([preprocess.array(item) for item in items]))


def read_masks(given: Any, preprocess: Preprocess) -> Tensor:
    """Masks as files, pictures, arrays or a tensor, white or 1 where to draw: (B, 1, H, W) of 0 and 1."""
    if isinstance(given, Tensor):
        mask = given.float()
        return (mask.view(-1, 1, *mask.shape[-2:]) > 0.5).float()
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    arrays = [preprocess.resize_map(_grey(item)) for item in items]
    return torch.from_numpy(np.stack(arrays) > 127).float()[:, None]


def read_maps(given: Any, preprocess: Preprocess) -> list[Tensor]:
    """Maps as files, pictures (grey or with a palette), arrays or tensors of class ids, one or several: (H, W) int64
    each, at the size of `preprocess`."""
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    arrays: list[np.ndarray] = []
    for item in items:
        values = _ids(item)
        arrays += list(values) if values.ndim == 3 else [values]
    return [torch.from_numpy(preprocess.resize_map(array).astype(np.int64)) for array in arrays]


def resized(preprocess: Preprocess, height: int, width: int) -> Preprocess:
    """The same preprocessing to another size."""
    return build({**spec_of(preprocess), "height": height, "width": width})


def _ids(item: Any) -> np.ndarray:
    if isinstance(item, (Tensor, np.ndarray)):
        return np.asarray(item.cpu() if isinstance(item, Tensor) else item)
    return np.asarray(item) if hasattr(item, "convert") else open_map(item)


def _grey(item: Any) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item.astype(np.uint8) * (255 if item.max() <= 1 else 1)
    return np.asarray(item.convert("L")) if hasattr(item, "convert") else open_mask(item)


def _repeated(tensor: Tensor, n: int) -> Tensor:
    if len(tensor) == n:
        return tensor
    if n % len(tensor):
        raise UserError(f"{len(tensor)} images for {n} pictures: give one, or one each.")
    return tensor.repeat_interleave(n // len(tensor), 0)
