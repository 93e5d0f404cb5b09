"""Networks: tensors in, tensors out. They need only torch, because an export writes their source beside the weights,
for diffusers to run where einops isn't installed. `unet` and `dit` add the residuals that `controlnet` computes."""

from ldm.networks.autoencoder import AutoencoderKL
from ldm.networks.cond import Cond
from ldm.networks.controlnet import Controlled, ControlNet, DiTControlNet, controlnet_for
from ldm.networks.dit import DiT
from ldm.networks.first_stages.base import Autoencoder
from ldm.networks.first_stages.tiny import AutoencoderTiny
from ldm.networks.first_stages.vq import VQModel
from ldm.networks.gaussian import Gaussian
from ldm.networks.identity import Identity
from ldm.networks.text import TextTransformer
from ldm.networks.unet import UNet

__all__ = [
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderTiny",
    "Cond",
    "ControlNet",
    "Controlled",
    "DiT",
    "DiTControlNet",
    "Gaussian",
    "Identity",
    "TextTransformer",
    "UNet",
    "VQModel",
    "controlnet_for",
]
