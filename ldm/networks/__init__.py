"""Networks: tensors in, tensors out. They need only torch, because an export writes their source beside the weights,
for diffusers to run where einops isn't installed."""

from ldm.networks.autoencoder import AutoencoderKL
from ldm.networks.cond import Cond
from ldm.networks.controlnet import Controlled, ControlNet, DiTControlNet, controlnet_for
from ldm.networks.dit import DiT
from ldm.networks.gaussian import Gaussian
from ldm.networks.identity import Identity
from ldm.networks.text import TextTransformer
from ldm.networks.unet import UNet

__all__ = [
    "AutoencoderKL",
    "Cond",
    "ControlNet",
    "Controlled",
    "DiT",
    "DiTControlNet",
    "Gaussian",
    "Identity",
    "TextTransformer",
    "UNet",
    "controlnet_for",
]
