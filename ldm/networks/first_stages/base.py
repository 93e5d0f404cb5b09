"""What all autoencoders of stage one share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.describe import Described, millions
from ldm.common.errors import UserError
from ldm.common.randomness import normal
from ldm.networks.gaussian import Gaussian


class Autoencoder(Described, nn.Module):
    """Maps images to posteriors over latents, and latents back to images.

    Subclasses have an `encoder`, a `decoder` and their sizes, and give `moments` and `pixels`. They say by
    `REGULARIZER` what bounds their latents in training: the KL term ("kl"), a codebook ("codebook") or nothing
    ("none"). Where it isn't "kl", the posterior is a point: its standard deviation is 0.
    """

    in_channels: int
    latent_channels: int
    factor: int  # the ratio of an image's sides to those of its latents
    stem: int = 1  # stem x stem pixels are one position of the networks' first map
    # Mean and standard deviation of the latents by channel, where the file of diffusers declared (z - shift) * scale.
    scaling: tuple[list[float], list[float]] | None = None
    coding: Any = None  # the precision and parts in which it computes: see `ldm.networks.computing.coding`
    # By half, the rows of its input beyond its own on which a row of its output depends; None where norms or attention
    # make it depend on all.
    reach: dict[str, int] | None = None
    REGULARIZER = "kl"
    ENCODING: tuple[str, ...] = ("encoder",)  # the parts of each half
    DECODING: tuple[str, ...] = ("decoder",)

    def facts(self) -> dict[str, str]:
        """Channels, factor and size in parameters, for `Described`, and how it computes."""
        return {
            "images": f"{self.in_channels} channels",
            "latents": f"{self.latent_channels} channels, 1/{self.factor} of height and width",
            "size": millions(self.parameters()),
            **({} if self.coding is None else self.coding.facts(next(self.parameters()).device)),
        }

    def encode(self, images: Tensor) -> Gaussian:
        """`images` (B, C, H, W) in [-1, 1], sides divisible by `factor` -> q(z | x) over (B, z, H/f, W/f)."""
        check_size(images.shape[2], images.shape[3], self.factor)
        return self.posterior(self.moments(images)) if self.coding is None else self.coding.encode(self, images)

    def decode(self, latents: Tensor) -> Tensor:
        """`latents` (B, z, h, w) -> images (B, C, h f, w f), about in [-1, 1]."""
        return self.pixels(self.quantised(latents)) if self.coding is None else self.coding.decode(self, latents)

    def moments(self, images: Tensor, encoder: Any = None) -> Tensor:
        """The numbers (B, M, H/f, W/f) that describe q(z | x). `encoder` replaces the model's own."""
        raise NotImplementedError

    def posterior(self, moments: Tensor) -> Gaussian:
        """q(z | x), in float32, from `moments`: here a point."""
        mean = moments.float()
        return Gaussian(mean, torch.zeros_like(mean))

    def quantised(self, latents: Tensor) -> Tensor:
        """What the decoder reads of `latents` (B, z, h, w), in their own precision: here themselves."""
        return latents

    def pixels(self, latents: Tensor, decoder: Any = None) -> Tensor:
        """Images (B, C, H, W) of `latents` (B, z, h, w), which are `quantised`. `decoder` replaces the model's own."""
        raise NotImplementedError

    def prior(self, noise: Tensor) -> Tensor:
        """Latents as if nothing were known of an image, from standard normal `noise` (B, z, h, w)."""
        return noise

    @property
    def width(self) -> int:
        """The channels of the encoder's last maps."""
        raise NotImplementedError

    @property
    def starts_from_images(self) -> bool:
        """Whether `start_from` sets weights."""
        return False

    def start_from(self, images: Tensor) -> None:
        """Sets first weights by `images` (B, C, H, W) of the training data."""

    def weights_of(self, parts: Sequence[str]) -> dict[str, Tensor]:
        """The weights of one half, `ENCODING` or `DECODING`, under their names in the whole state dict."""
        return {name: tensor for name, tensor in self.state_dict().items() if name.partition(".")[0] in parts}

    def encoding_form(self) -> dict[str, Any]:
        """What latents depend on beside the weights of `ENCODING`, as plain data."""
        return {"encoder of": type(self).__name__}

    def freeze_encoder(self) -> None:
        """Stops gradients of the encoder's half, so that training leaves it as it is."""
        self._freeze(self.ENCODING)

    def _freeze(self, parts: Sequence[str]) -> None:
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in parts:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Gaussian]:
        """The reconstruction (B, C, H, W) from one sample of the posterior, and the posterior."""
        posterior = self.encode(images)
        return self.decode(posterior.sample(noise)), posterior

    @torch.no_grad()
    def augment(
        self, images: Tensor, n: int = 1, temperature: float = 1.0, seed: int = 0, position: Tensor | None = None
    ) -> Tensor:
        """`n` variants of each image (B, C, H, W) -> (B, n, C, H, W): z ~ N(mean, (temperature std)^2), decoded.

        At temperature 0 it is the reconstruction, at 1 a decoded sample of the posterior. How much changes depends on
        how far the KL term lets the posterior spread. The noise depends only on `seed` and each image's `position`
        (B,), by default its index in the batch.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise UserError("augment takes a tensor of images (B, C, H, W) in [-1, 1]; augment.py reads files.")
        if n < 1 or not 0 <= temperature < math.inf:
            raise UserError(
                f"n={n}, temperature={temperature}: give at least one variant, at a temperature of 0 or more."
            )
        if temperature and self.REGULARIZER != "kl":
            raise UserError(
                f"{type(self).__name__} has one latent for each image, and so no variants of it: use an "
                "AutoencoderKL, or temperature=0 for the reconstruction."
            )
        posterior = self.encode(images)
        position = torch.arange(len(images)) if position is None else position
        shape = (n, *posterior.mean.shape[1:])
        noise = normal(seed, "augment", position.to(images.device), shape)  # (B, n, z, h, w)
        latents = posterior.mean[:, None] + temperature * posterior.std[:, None] * noise
        return self.decode(latents.flatten(0, 1)).clamp(-1, 1).unflatten(0, (len(images), n))

    @property
    def last_layer(self) -> Tensor:
        """The weight at which an adversarial loss is balanced against the reconstruction."""
        raise NotImplementedError


def check_size(height: int, width: int, factor: int) -> None:
    """Refuses sizes that the autoencoder can't halve evenly."""
    if height % factor or width % factor:
        fit = f"{-(-height // factor) * factor}x{-(-width // factor) * factor}"
        raise UserError(f"{height}x{width} isn't divisible by the autoencoder's factor {factor}; use data.size={fit}.")
