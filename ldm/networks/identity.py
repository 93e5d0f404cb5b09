"""No first stage: pixels instead of latents."""

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
        """The images (B, C, H, W) themselves, with standard deviation 0."""
        return Gaussian(images, torch.zeros_like(images))

    def decode(self, latents: Tensor) -> Tensor:
        """The latents (B, C, H, W) themselves."""
        return latents
