"""Two-stage latent diffusion on your own images.

import ldm
model = ldm.load("runs/ldm/emoji")
model("a cat above a rocket on a blue background", n=4)
"""

from ldm import artifact
from ldm.conditioning import ClassLabel, Conditioner, Text
from ldm.diffusion import Denoiser
from ldm.errors import UserError
from ldm.loading import load
from ldm.networks import AutoencoderKL, UNet
from ldm.pipeline import LatentDiffusion, sample_prior
from ldm.registry import build, register, spec_of

save = artifact.save
__version__ = "0.1.0"
__all__ = [
    "AutoencoderKL",
    "ClassLabel",
    "Conditioner",
    "Denoiser",
    "LatentDiffusion",
    "Text",
    "UNet",
    "UserError",
    "build",
    "load",
    "register",
    "sample_prior",
    "save",
    "spec_of",
]
