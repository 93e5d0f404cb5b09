"""Sources of images, which all give tables of one form, and their batches."""

from ldm.data.sources.digits import Digits
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.folder import Folder
from ldm.data.sources.huggingface import HuggingFace
from ldm.data.sources.shards import Shards
from ldm.data.sources.torchvision_sets import TorchVision
from ldm.data.storage.table import Table

__all__ = ["Digits", "Emoji", "Folder", "HuggingFace", "Shards", "Table", "TorchVision"]
