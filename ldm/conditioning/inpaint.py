"""Inpainting as a condition: the network reads the mask and the part of the image that is kept."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning.part import EncodeFn, Part
from ldm.images.random_masks import random_masks
from ldm.networks import Cond

MASKS = ("random", "data")
SHARE, STABLE = LAYOUTS = ("share", "stable_diffusion")


@register
class Inpaint(Part):
    """Mask and masked image, concatenated with the latent (Rombach et al. 2022, section 4.5; Stable Diffusion).

    Masked pixels are made grey and the image is encoded by the first stage. The result is (B, 1 + latent_channels, h,
    w), where the first channel is the mask's. This is the only call of the first stage in the training loop of stage
    two. In the `layout` "share" the mask's channel is the share of masked pixels, and latents whose pixels are all
    masked are set to 0. In "stable_diffusion", which Stable Diffusion's inpainting models and diffusers' pipelines
    have, it is 1 where the first pixel of a latent is masked, else 0, and masked latents are those of grey.

    `masks` are "random" boxes and strokes, or "data", the column `mask` of the data. The null condition is a mask of
    everything, so that the model also generates whole images. `latent_channels`, `factor`, `size` and the images'
    `channels` are derived from the first stage and the data.
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
        layout: str = SHARE,
        channels: int = 3,
    ):
        super().__init__(drop_prob)
        if layout not in LAYOUTS:
            raise UserError(
                f"layout={layout} isn't a choice; take {' or '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}"
            )
        self.layout, self.channels = layout, channels
        if masks not in MASKS:
            raise UserError(f"masks={masks} is unknown: give random or data.{did_you_mean(masks, MASKS)}")
        self.latent_channels, self.factor = latent_channels, factor
        self.size = (size[0], size[1]) if size else None
        if masks == "data":
            self.sources = (*self.sources, "mask")
        self.concat_channels = 1 + latent_channels

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size (height, width) of the data's images, and for Stable Diffusion's layout their channels."""
        channels = {"channels": int(table.images.shape[1])} if options.get("layout") == STABLE else {}
        return {"size": list(table.images.shape[2:]), **channels}

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
        latents = encode(image * (1 - mask))  # (B, C, h, w)
        if self.layout == STABLE:
            return self._with_grey(torch.cat([mask[..., :: self.factor, :: self.factor], latents], 1), image, encode)
        share = F.avg_pool2d(mask, self.factor)  # (B, 1, h, w)
        return torch.cat([share, latents * (share < 1)], 1)  # (B, 1 + C, h, w)

    def _with_grey(self, values: Tensor, image: Tensor, encode: EncodeFn) -> Tensor:
        """`prepared` values followed by the latents of grey, which replace those of dropped samples: (B, 1 + 2 C, h,
        w). Unchanged if none are ever dropped."""
        if not self.drop_prob:
            return values
        grey = encode(torch.zeros_like(image[:1])).expand(len(values), -1, -1, -1)
        return torch.cat([values, grey], 1)

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

    def null_inputs(self, n: int, size: tuple[int, int] | None) -> dict[str, Any]:
        """In Stable Diffusion's layout a grey image and its mask, from which `prepare` makes the null values."""
        if self.layout != STABLE:
            return super().null_inputs(n, size)
        height, width = self._sides(size)
        return {"image": torch.zeros(n, self.channels, height, width), "mask": torch.ones(n, 1, height, width)}

    def _sides(self, size: tuple[int, int] | None) -> tuple[int, int]:
        size = size or self.size
        if size is None:
            raise UserError("the image's size is unknown: give size=(height, width).")
        return size

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        """Masks of everything (n, 1 + C, h, w), for images of `size` (height, width), in the layout "share".

        In Stable Diffusion's layout the first stage has to encode them: see `null_inputs`.
        """
        if self.layout == STABLE:
            raise ValueError("layout=stable_diffusion: get null values by calling `prepare` on `null_inputs`")
        height, width = self._sides(size)
        masked = torch.zeros(n, 1 + self.latent_channels, height // self.factor, width // self.factor)
        masked[:, 0] = 1
        return masked

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """What `prepare` computes, (B, 1 + C, h, w), or more with the latents of grey -> `concat` (B, 1 + C, h, w)."""
        values, grey = values.tensor_split([self.concat_channels], 1)  # grey: (B, C, h, w), or no channels
        if drop is not None:
            null = torch.zeros_like(values)
            null[:, 0] = 1
            if grey.shape[1]:
                null[:, 1:] = grey
            values = torch.where(drop[:, None, None, None], null, values)
        return Cond(concat=values)
