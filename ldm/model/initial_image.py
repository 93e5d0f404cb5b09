"""The initial image of image to image and inpainting, with its mask and margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.devices import send
from ldm.common.errors import UserError


@dataclass(frozen=True)
class InitialImage:
    """An image (B, C, H, W) in [-1, 1] that generation starts from.

    `strength` from 0 to 1 says how much of it is changed. With a `mask` (B, 1, H, W) only the part where it is 1 is
    generated, and blended with the rest over `feather` pixels inside the mask.
    """

    image: Tensor
    mask: Tensor | None = None
    strength: float = 0.8
    feather: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength} has to lie between 0 (keeps the image) and 1 (ignores it).")
        if self.mask is not None and self.mask.shape[2:] != self.image.shape[2:]:
            mask, image = tuple(self.mask.shape[2:]), tuple(self.image.shape[2:])
            raise UserError(f"the mask is {mask} and the image is {image}: give both the same size.")

    def repeated(self, n: int) -> "InitialImage":
        """The initial image repeated for each of `n` images.

        Raises UserError unless `n` is a multiple of the present rows.
        """
        return self._map(lambda t: _repeated(t, n))

    def padded(self, pad: int | Sequence[int] | None) -> "InitialImage":
        """The initial image with a margin to be generated: `pad` pixels on every side, or (left, top, right, bottom)
        pixels."""
        if pad is None:
            return self
        left, top, right, bottom = margins(pad)
        mask = self.mask if self.mask is not None else torch.zeros_like(self.image[:, :1])
        image = F.pad(self.image, (left, right, top, bottom), mode="replicate")
        return InitialImage(image, F.pad(mask, (left, right, top, bottom), value=1.0), self.strength, self.feather)

    def take(self, rows: Tensor) -> "InitialImage":
        """The initial images of some of the images, by their indices `rows`."""
        return self._map(lambda t: t[send(rows, t.device)])

    def kept_latents(self, size: Sequence[int]) -> Tensor:
        """A mask (B, 1, h, w) of latents of `size` (h, w): 1 where none of the latent's pixels is to be generated."""
        assert self.mask is not None
        return 1 - F.adaptive_max_pool2d(self.mask, list(size))

    def paste(self, images: Tensor) -> Tensor:
        """`images` (B, C, H, W) with the pixels outside the mask replaced by exactly those of the initial image, and
        the edge blended over `feather` pixels inside the mask."""
        if self.mask is None:
            return images
        new = self.mask
        if self.feather > 0:
            width = 2 * self.feather + 1
            new = new * F.avg_pool2d(F.pad(new, [self.feather] * 4, mode="replicate"), width, stride=1)
        return torch.where(new > 0, torch.lerp(self.image, images, new), self.image)

    def _map(self, function: Any) -> "InitialImage":
        mask = None if self.mask is None else function(self.mask)
        return InitialImage(function(self.image), mask, self.strength, self.feather)


def margins(pad: int | Sequence[int]) -> tuple[int, int, int, int]:
    """The margin in pixels as (left, top, right, bottom), from one number or four."""
    sides = [pad] * 4 if isinstance(pad, int) else [int(p) for p in pad]
    if len(sides) != 4 or min(sides) < 0:
        raise UserError(f"pad={pad}: give one number of pixels, or four: left, top, right, bottom.")
    return sides[0], sides[1], sides[2], sides[3]


def _repeated(tensor: Tensor, n: int) -> Tensor:
    if len(tensor) == n:
        return tensor
    if n % len(tensor):
        raise UserError(f"{len(tensor)} images for {n} to generate: give one, or one for each.")
    return tensor.repeat_interleave(n // len(tensor), 0)
