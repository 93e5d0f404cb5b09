"""What is put on a trained model: small files that name by its hash the base they were trained on."""

from ldm.adapters.adaptable import Adaptable
from ldm.adapters.base import Adapter, base_of, read
from ldm.adapters.controlnet import Control, Steering, steering
from ldm.adapters.lora import LoraAdapter
from ldm.adapters.textual_inversion import WordEmbedding

__all__ = ["Adaptable", "Adapter", "Control", "LoraAdapter", "Steering", "WordEmbedding", "base_of", "read", "steering"]
