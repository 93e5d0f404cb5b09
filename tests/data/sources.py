"""What the tests of sources share: images, and a run of 8 steps in both stages."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

import ldm
from ldm.commands import cli

_COMMON = "trainer.max_steps=8 batch_size=4 samples.n=2 logger=none trainer.limit_val_batches=1"
_VAE = f"{_COMMON} vae.channels=8 vae.multipliers=[1] vae.stem=4 vae.latent_channels=2"
_LDM = f"{_COMMON} network=unet network.channels=[8] network.heads=2 diffusion.sampling.steps=2"


def sample_image(i: int, height: int = 16, width: int = 16) -> Image.Image:
    """An image whose colour says which it is."""
    pixels = np.full((height, width, 3), (i * 7 % 256, i * 31 % 256, 128), np.uint8)
    return Image.fromarray(pixels)


def encoded(i: int, height: int = 16, width: int = 16) -> bytes:
    buffer = io.BytesIO()
    sample_image(i, height, width).save(buffer, "PNG")
    return buffer.getvalue()


def is_sample_image(image: np.ndarray, i: int) -> bool:
    """Whether (3, H, W) uint8 is the image of that number."""
    return image[:, 0, 0].tolist() == [i * 7 % 256, i * 31 % 256, 128]


def train_both(runs: Path, *words: str) -> ldm.LatentDiffusion:
    """Both stages for 8 steps, more than an epoch of 24 images, on what `words` say; the model."""
    cli.run("train_vae", [*_VAE.split(), *words, f"runs_dir={runs}", "name=here"])
    cli.run("train_ldm", [*_LDM.split(), *words, f"runs_dir={runs}", "name=here", "first_stage=here"])
    return ldm.load(runs / "ldm" / "here")
