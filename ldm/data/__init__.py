"""Sources of images, all of one form."""

from ldm.data.digits import Digits
from ldm.data.emoji import Emoji
from ldm.data.folder import Folder
from ldm.data.huggingface import HuggingFace
from ldm.data.shards import Shards
from ldm.data.table import Table
from ldm.data.vision import TorchVision

__all__ = ["Digits", "Emoji", "Folder", "HuggingFace", "Shards", "Table", "TorchVision"]
