"""No first stage: pixels in an autoencoder's place."""

import torch
from torch import Tensor, nn

from ldm.common.registry import register
from ldm.networks.gaussian import Gaussian


@register
class Identity(nn.Module):
    """No first stage: diffusion on the pixels themselves (`first_stage=identity`), which is DDPM."""

    factor = 1

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.in_channels = self.latent_channels = in_channels

    def encode(self, images: Tensor) -> Gaussian:
        return Gaussian(images, torch.zeros_like(images))

    def decode(self, latents: Tensor) -> Tensor:
        return latents
