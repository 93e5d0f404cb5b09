# mypy: disable-error-code="attr-defined"
"""The autoencoder of ldm as a model of diffusers, whitening included."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from ldm.networks.autoencoder import AutoencoderKL
from ldm.networks.first_stages.tiny import AutoencoderTiny
from ldm.networks.first_stages.vq import VQModel

KINDS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, VQModel)}


class LdmVAE(ModelMixin, ConfigMixin):
    """Called as AutoencoderKL is; its latents have mean 0 and standard deviation 1 per channel."""

    @register_to_config
    def __init__(
        self, spec: dict[str, Any], latent_mean: list[float], latent_std: list[float], scaling_factor: float = 1.0
    ):
        super().__init__()
        self.network = KINDS[spec["class"]](**{key: value for key, value in spec.items() if key != "class"})

    @property
    def factor(self) -> int:
        """The ratio of an image's sides to those of its latents."""
        return self.network.factor

    def encode(self, images: Tensor, return_dict: bool = True) -> Any:
        """`images` (B, C, H, W) in [-1, 1] -> the posterior over whitened latents (B, z, h, w)."""
        posterior, (mean, std) = self.network.encode(images), self._whitening(images)
        moments = [(posterior.mean - mean) / std, 2 * (posterior.std / std).log()]
        distribution = DiagonalGaussianDistribution(torch.cat(moments, 1))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Whitened `latents` (B, z, h, w) -> images (B, C, H, W)."""
        mean, std = self._whitening(latents)
        images = self.network.decode(latents * std + mean)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def _whitening(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.config.latent_mean), like.new_tensor(self.config.latent_std)
        return mean[:, None, None], std[:, None, None]  # (z, 1, 1)
