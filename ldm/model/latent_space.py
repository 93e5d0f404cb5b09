"""From images to whitened latents and back, and the precision and parts in which that is computed."""

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
from ldm.networks import Autoencoder, Identity
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.finite import is_finite


class InLatents:
    """A model whose denoiser works on whitened latents of a first stage: z = (latent - latent_mean) / latent_std."""

    first_stage: Autoencoder | Identity
    latent_mean: Tensor
    latent_std: Tensor
    coding: Coding
    previewer: tuple[Autoencoder, ...] = ()  # of `preview`; in a tuple, so that its weights aren't part of this
    _opener: ClassVar[Callable[..., Any]]  # `ldm.load`, which stands above and puts itself here

    @property
    def precision(self) -> str:
        """The precision in which the networks generate, encode and decode; it may be set.

        It is "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU that supports it. Weights stay in float32,
        and so do noise levels, the sampler's sums, and the encoders of conditions.
        """
        return self.coding.precision

    @precision.setter
    def precision(self, precision: Any) -> None:
        """Sets the precision, by name or as a torch.dtype."""
        self.compute(precision, self.coding.tile, self.coding.tile_statistics, self.coding.compile)

    @property
    def tile(self) -> int | None:
        """Images of more than `tile` x `tile` pixels are encoded and decoded in parts, unless it is None; it may be
        set."""
        return self.coding.tile

    @tile.setter
    def tile(self, tile: int | None) -> None:
        """Sets the side of a tile in pixels."""
        self.compute(self.coding.precision, tile, self.coding.tile_statistics, self.coding.compile)

    def compute(
        self,
        precision: Any = "float32",
        tile: int | None = None,
        tile_statistics: str = "image",
        compile: Any = False,
    ) -> None:
        """Sets how the model computes: see `ldm.networks.computing.coding.Coding`."""
        if tile is not None and isinstance(self.first_stage, Identity):
            raise UserError(
                f"tile={tile}: this model works on pixels and has no autoencoder that could work "
                "in tiles: leave tile out."
            )
        self.coding = Coding(precision, tile, tile_statistics, compile)

    @check_arguments
    def load_decoder(self, path: str | Path) -> None:
        """Replaces the decoder permanently by that of the autoencoder at `path`.

        That is a run of `train_vae.py train=decoder`, or whatever `ldm.load` reads. If the model is saved, the new
        decoder is saved with it. Latents, and so adapters, stay the same. Raises UserError unless that autoencoder has
        exactly the same encoder.
        """
        mine: Any = self.first_stage
        if isinstance(mine, Identity):
            raise UserError(f"{path}: this model works on pixels and has no decoder to replace.")
        other = autoencoder(self._opener(path, precision="float32"), str(path))
        if encoder_hash(other) != encoder_hash(mine):
            raise UserError(
                f"{path} can't decode this model's latents, since the encoders differ: use a decoder trained on this "
                "model's first stage, with train_vae.py base=... train=decoder."
            )
        hash_of(self)  # adapters identify the model by its hash, so it is computed before the change
        mine.load_state_dict(other.weights_of(other.DECODING), strict=False)

    @check_arguments
    def load_preview_decoder(self, path: str | Path) -> None:
        """Loads a small decoder for `preview`, such as TAESD's for Stable Diffusion, from whatever `ldm.load` reads.

        It isn't part of the model, and the images that the model generates stay the same. Raises UserError unless it
        decodes latents and makes images of the model's channels and size.
        """
        other = autoencoder(self._opener(path, precision=self.precision), str(path))
        mine: Any = self.first_stage
        wanted, found = ((stage.latent_channels, stage.factor, stage.in_channels) for stage in (mine, other))
        if wanted != found:
            raise UserError(
                f"preview_decoder={path} reads {_words(other)}, and this model's latents have {_words(mine)}: take the "
                "one that was made for its first stage, or none."
            )
        self.previewer = (other,)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """Whitened latents (B, z, h, w) -> images (B, C, H, W) in [-1, 1] to look at: by the preview decoder if one is
        loaded, else by `decode`.

        Preview decoders read latents as diffusers scales them for a denoiser. For a first stage from a diffusers file,
        that scale is what its config declares; otherwise it is this model's whitening.
        """
        if not self.previewer:
            return self.decode(latents)
        own, other = getattr(self.first_stage, "scaling", None), self.previewer[0].to(self.latent_mean.device)
        raw = self.unwhiten(latents.float())
        scaled = _scaled(raw, own) if own else latents.float()
        with torch.autocast(latents.device.type, enabled=False):
            images = other.decode(_scaled(scaled, other.scaling, inverse=True) if other.scaling else scaled)
        return images.clamp(-1, 1).where(images.isfinite(), math.nan)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the networks compute on the model's device."""
        return self.coding.dtype(self.latent_mean.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> whitened latents (B, z, h, w), the mean of the posterior.

        It is computed in the model's own precision, even under autocast.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.whiten(self.coding.encode(self.first_stage, images).mode())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Whitened latents (B, z, h, w) -> images (B, C, H, W), clamped to [-1, 1].

        It is computed in the model's own precision, even under autocast. Values that aren't finite become NaN, since an
        infinite one would look white or black when clamped.
        """
        with torch.autocast(latents.device.type, enabled=False):
            images = self.coding.decode(self.first_stage, self.unwhiten(latents.float()))
            return images.clamp(-1, 1).where(images.isfinite(), math.nan)

    def whiten(self, latents: Tensor) -> Tensor:
        """(latents - latent_mean) / latent_std for `latents` (B, z, h, w)."""
        return (latents - _spread(self.latent_mean)) / _spread(self.latent_std)

    def unwhiten(self, latents: Tensor) -> Tensor:
        """The inverse of `whiten`, for `latents` (B, z, h, w)."""
        return latents * _spread(self.latent_std) + _spread(self.latent_mean)


def autoencoder(model: Any, where: str) -> Autoencoder:
    """The loaded autoencoder, or the first stage of a whole model. Raises UserError if there is none."""
    found = getattr(model, "first_stage", model)
    if not isinstance(found, Autoencoder):
        raise UserError(f"{where} holds a {type(model).__name__} without an autoencoder; name a run of train_vae.py.")
    return found


def finite(images: Tensor) -> Tensor:
    """The generated `images` themselves. Raises UserError if they hold values that are infinite or NaN."""
    if not is_finite(images):
        raise UserError(
            "the generated images hold infinite values or NaN: use guidance, shift and scales nearer to 1, "
            "precision=float32, or another checkpoint."
        )
    return images


def compute(model: Any, precision: Any, tile: int | None, tile_statistics: str, compile: Any = False) -> Any:
    """Sets how a loaded model or autoencoder computes, and returns it.

    Anything else, such as an adapter, has only the defaults: other settings raise UserError.
    """
    if isinstance(model, Autoencoder):
        model.coding = Coding(precision, tile, tile_statistics, compile)
    elif isinstance(model, InLatents):
        model.compute(precision, tile, tile_statistics, compile)
    elif tile is not None or precision not in ("auto", "float32") or compile:
        name = type(model).__name__
        raise UserError(
            f"precision=, tile= and compile= are for models that generate, and a {name} doesn't: leave them out."
        )
    return model


def _scaled(latents: Tensor, scaling: tuple[list[float], list[float]], inverse: bool = False) -> Tensor:
    """(latents - mean) / std by channel, or the inverse of that, for `latents` (B, z, h, w)."""
    mean, std = (_spread(latents.new_tensor(values)) for values in scaling)
    return latents * std + mean if inverse else (latents - mean) / std


def _words(stage: Any) -> str:
    return f"{stage.latent_channels} channels at 1/{stage.factor} of an image of {stage.in_channels} channels"


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]  # (C, 1, 1)
