"""Inpainting as a condition: the network reads the mask and the part of the image that is kept."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning.part import EncodeFn, Part
from ldm.conditioning.random_masks import random_masks
from ldm.networks import Cond

MASKS = ("random", "data")


@register
class Inpaint(Part):
    """Mask and masked image, concatenated with the latent (Rombach et al. 2022, section 4.5; Stable Diffusion).

    Masked pixels are made grey and the image is encoded by the first stage; latents whose pixels are all masked are set
    to 0. The result is (B, 1 + latent_channels, h, w), where the first channel is the share of masked pixels. This is
    the only call of the first stage in the training loop of stage two. `masks` are "random" boxes and strokes, or
    "data", the column `mask` of the data. The null condition is a mask of everything, so that the model also generates
    whole images. `latent_channels`, `factor` and `size` are derived from the first stage and the data.
    """

    column = "masked"
    sources: tuple[str, ...] = ("image",)
    follows_guidance = False  # guidance by a prompt must not lead away from what is kept

    def __init__(
        self,
        latent_channels: int,
        factor: int = 1,
        size: list[int] | None = None,
        masks: str = "random",
        drop_prob: float = 0.05,
    ):
        super().__init__(drop_prob)
        if masks not in MASKS:
            raise UserError(f"masks={masks} is unknown: give random or data.{did_you_mean(masks, MASKS)}")
        self.latent_channels, self.factor = latent_channels, factor
        self.size = (size[0], size[1]) if size else None
        if masks == "data":
            self.sources = (*self.sources, "mask")
        self.concat_channels = 1 + latent_channels

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size (height, width) of the data's images."""
        return {"size": list(table.images.shape[2:])}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The first stage's factor and number of channels."""
        return {"factor": first_stage.factor, "latent_channels": first_stage.latent_channels}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image, and its mask, which is 1 where something new is generated."""
        return ("image", "mask")

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Tensor:
        """The share of masked pixels and the latents of the masked image, (B, 1 + C, h, w)."""
        image = batch["image"]
        if batch.get("mask") is None:
            mask = random_masks(seed, batch["position"], (image.shape[2], image.shape[3]))
        else:
            mask = batch["mask"]
        share = F.avg_pool2d(mask, self.factor)  # (B, 1, h, w)
        latents = encode(image * (1 - mask))  # (B, C, h, w)
        return torch.cat([share, latents * (share < 1)], 1)

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The batch's images with its masks, or with random ones, decided by (seed, position)."""
        image = batch["image"]
        mask = batch.get("mask")
        if mask is None:
            mask = random_masks(seed, batch["position"], (image.shape[2], image.shape[3]))
        return {"image": image, "mask": mask}

    def parse(self, values: Any) -> Tensor:
        """Images (C, H, W) in [-1, 1], or masks (1, H, W) -> (B, C or 1, H, W) float32."""
        return torch.stack([torch.as_tensor(value).float() for value in values])

    def null_values(self, n: int) -> Tensor:
        """Masks of everything (n, 1 + C, h, w), for the size of the training data."""
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        """Masks of everything (n, 1 + C, h, w), for images of `size` (height, width)."""
        size = size or self.size
        if size is None:
            raise UserError("the image's size isn't known: give size=(height, width).")
        masked = torch.zeros(n, 1 + self.latent_channels, size[0] // self.factor, size[1] // self.factor)
        masked[:, 0] = 1
        return masked

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """What `prepare` computes, (B, 1 + C, h, w) -> `concat` of the same shape."""
        if drop is not None:
            null = torch.zeros_like(values)
            null[:, 0] = 1
            values = torch.where(drop[:, None, None, None], null, values)
        return Cond(concat=values)
