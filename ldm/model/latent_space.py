"""Between images and whitened latents, and in which precision and parts that is computed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm.adapters.adapter import hash_of
from ldm.artifact import encoder_hash
from ldm.common.annotations import check_arguments
from ldm.common.errors import UserError
from ldm.networks import AutoencoderKL, Identity
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.finite import is_finite


class InLatents:
    """A model whose denoiser works on whitened latents of a first stage: z = (latent - latent_mean) / latent_std."""

    first_stage: AutoencoderKL | Identity
    latent_mean: Tensor
    latent_std: Tensor
    coding: Coding
    _opener: ClassVar[Callable[..., Any]]  # `ldm.load`, which stands above and puts itself here

    @property
    def precision(self) -> str:
        """What the networks compute in when generating, encoding and decoding: "float32", "bfloat16", "float16" or
        "auto", which is bfloat16 on a GPU that has it. It may be set anew.

        Weights stay in float32, and so do noise levels, the sampler's sums, and the encoders of conditions.
        """
        return self.coding.precision

    @precision.setter
    def precision(self, precision: Any) -> None:
        self.compute(precision, self.coding.tile, self.coding.tile_statistics, self.coding.compile)

    @property
    def tile(self) -> int | None:
        """Images of more than `tile` x `tile` pixels are encoded and decoded in parts; None: none are. It may be set
        anew."""
        return self.coding.tile

    @tile.setter
    def tile(self, tile: int | None) -> None:
        self.compute(self.coding.precision, tile, self.coding.tile_statistics, self.coding.compile)

    def compute(
        self,
        precision: Any = "float32",
        tile: int | None = None,
        tile_statistics: str = "image",
        compile: Any = False,
    ) -> None:
        """Sets how it computes: see `ldm.networks.computing.coding.Coding`."""
        if tile is not None and isinstance(self.first_stage, Identity):
            raise UserError(f"tile={tile}: this model works on pixels and has no autoencoder to code in tiles.")
        self.coding = Coding(precision, tile, tile_statistics, compile)

    @check_arguments
    def load_decoder(self, path: str | Path) -> None:
        """Takes the decoder of the autoencoder at `path`, for good: a run of `train_vae.py train=decoder`, or whatever
        `ldm.load` reads. What the model is saved as has it too. Latents, and so adapters, stay what they are.

        Raises UserError where that autoencoder's encoder isn't this model's, bit for bit.
        """
        mine: Any = self.first_stage
        if isinstance(mine, Identity):
            raise UserError(f"{path}: this model works on pixels and has no decoder to replace.")
        other = autoencoder(self._opener(path, precision="float32"), str(path))
        if encoder_hash(other) != encoder_hash(mine):
            raise UserError(
                f"{path} can't decode this model's latents, the encoders differ: take one that train_vae.py made of "
                "this model's first stage, by base=... train=decoder."
            )
        hash_of(self)  # by which adapters know it, before it is changed
        mine.load_state_dict(other.weights_of(other.DECODING), strict=False)

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in where the model is."""
        return self.coding.dtype(self.latent_mean.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to whitened latents (the posterior's mean), under autocast too in the model's
        own precision."""
        with torch.autocast(images.device.type, enabled=False):
            return self.whiten(self.coding.encode(self.first_stage, images).mode())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Whitened latents to images (B, C, H, W), clamped to [-1, 1], under autocast too in the model's own
        precision. Values that aren't finite are NaN: clamped, an infinite one would look like white or black."""
        with torch.autocast(latents.device.type, enabled=False):
            images = self.coding.decode(self.first_stage, self.unwhiten(latents.float()))
            return images.clamp(-1, 1).where(images.isfinite(), math.nan)

    def whiten(self, latents: Tensor) -> Tensor:
        return (latents - _spread(self.latent_mean)) / _spread(self.latent_std)

    def unwhiten(self, latents: Tensor) -> Tensor:
        return latents * _spread(self.latent_std) + _spread(self.latent_mean)


def autoencoder(model: Any, where: str) -> AutoencoderKL:
    """What was loaded, or of a whole model its first stage. Raises UserError for pixels and for what has none."""
    found = getattr(model, "first_stage", model)
    if not isinstance(found, AutoencoderKL):
        raise UserError(f"{where} holds a {type(model).__name__} without an autoencoder; name a run of train_vae.py.")
    return found


def finite(images: Tensor) -> Tensor:
    """`images`, which a model generated. Raises UserError where they hold values that are infinite or no number."""
    if not is_finite(images):
        raise UserError(
            "the images hold values that are infinite or no numbers, so there is nothing to see: take guidance, shift "
            "and scales nearer to 1, precision=float32, or another checkpoint."
        )
    return images


def compute(model: Any, precision: Any, tile: int | None, tile_statistics: str, compile: Any = False) -> Any:
    """Has a loaded model, or an autoencoder by itself, compute so. Raises UserError where something is asked of another
    kind."""
    if isinstance(model, AutoencoderKL):
        model.coding = Coding(precision, tile, tile_statistics, compile)
    elif isinstance(model, InLatents):
        model.compute(precision, tile, tile_statistics, compile)
    elif tile is not None or precision not in ("auto", "float32") or compile:
        name = type(model).__name__
        raise UserError(f"precision=, tile= and compile= are for models that generate, which a {name} doesn't.")
    return model


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]  # (C, 1, 1)
