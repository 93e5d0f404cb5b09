"""What is put on a trained model: small files that name by its hash the base they were trained on."""

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
