"""`train_vae.py`: stage one, an autoencoder in runs/vae/NAME."""

from ldm.training.vae_base import precheck
from ldm.training.vae_run import main

__all__ = ["main", "precheck"]
