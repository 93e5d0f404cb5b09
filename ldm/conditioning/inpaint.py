"""Inpainting as a condition: the network is shown what is kept."""

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
    """Mask and masked image, joined to the latent (Rombach et al. 2022, section 4.5; Stable Diffusion's inpainting).

    What is hidden is made grey, the image encoded by the first stage, and the latents of which every pixel is hidden
    are 0: (B, 1 + latent_channels, h, w), the first channel the share of hidden pixels. Encoding it is the one call of
    the first stage inside stage two's loop. `masks` are "random" boxes and strokes, or the data's own column `mask`.
    Null is "everything hidden", so that the model also draws from nothing. `latent_channels`, `factor` and `size` are
    read off the first stage and the data.
    """

    column = "masked"
    sources: tuple[str, ...] = ("image",)
    follows_guidance = False  # guidance by a prompt must not lead away from what is there

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
            raise UserError(f"masks={masks} isn't a choice; take random, or data.{did_you_mean(masks, MASKS)}")
        self.latent_channels, self.factor = latent_channels, factor
        self.size = (size[0], size[1]) if size else None
        if masks == "data":
            self.sources = (*self.sources, "mask")
        self.concat_channels = 1 + latent_channels

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"size": list(table.images.shape[2:])}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"factor": first_stage.factor, "latent_channels": first_stage.latent_channels}

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "mask")

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Tensor:
        image = batch["image"]
        if batch.get("mask") is None:
            mask = random_masks(seed, batch["position"], (image.shape[2], image.shape[3]))
        else:
            mask = batch["mask"]
        share = F.avg_pool2d(mask, self.factor)  # (B, 1, h, w)
        latents = encode(image * (1 - mask))  # (B, C, h, w)
        return torch.cat([share, latents * (share < 1)], 1)  # (B, 1 + C, h, w)

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        image = batch["image"]
        mask = batch.get("mask")
        drawn = random_masks(seed, batch["position"], (image.shape[2], image.shape[3])) if mask is None else mask
        return {"image": image, "mask": drawn}

    def parse(self, values: Any) -> Tensor:
        return torch.stack([torch.as_tensor(value).float() for value in values])

    def null_values(self, n: int) -> Tensor:
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        size = size or self.size
        if size is None:
            raise UserError("the image's size isn't known: give size=(height, width).")
        hidden = torch.zeros(n, 1 + self.latent_channels, size[0] // self.factor, size[1] // self.factor)
        hidden[:, 0] = 1
        return hidden

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        if drop is not None:
            nothing = torch.zeros_like(values)
            nothing[:, 0] = 1
            values = torch.where(drop[:, None, None, None], nothing, values)
        return Cond(concat=values)
