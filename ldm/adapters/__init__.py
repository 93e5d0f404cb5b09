"""Adapters: small additions to a trained model, whose files identify the base they were trained on by its hash."""

from ldm.adapters.adaptable import Adaptable
from ldm.adapters.adapter import Adapter, base_of, read
from ldm.adapters.controlnet import Control, ControlImages, control_images
from ldm.adapters.lora import LoraAdapter
from ldm.adapters.textual_inversion import WordEmbedding

__all__ = [
    "Adaptable",
    "Adapter",
    "Control",
    "LoraAdapter",
    "ControlImages",
    "WordEmbedding",
    "base_of",
    "read",
    "control_images",
]
