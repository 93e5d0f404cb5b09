"""From a batch's columns to what the network is told."""

from ldm.conditioning.conditioner import Conditioner, merge
from ldm.conditioning.frozen import FrozenText
from ldm.conditioning.parts import ClassLabel, Part, Text

__all__ = ["ClassLabel", "Conditioner", "FrozenText", "Part", "Text", "merge"]
