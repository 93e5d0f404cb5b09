"""`train_vae.py`: trains stage one, an autoencoder, into runs/vae/NAME."""

from ldm.training.vae_base import precheck
from ldm.training.vae_run import main

__all__ = ["main", "precheck"]
