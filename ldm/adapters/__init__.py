"""What is put on a trained model: small files that name by its hash the base they were trained on."""

from ldm.adapters.adaptable import Adaptable
from ldm.adapters.base import Adapter, base_of, read

__all__ = ["Adaptable", "Adapter", "base_of", "read"]
