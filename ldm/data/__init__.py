"""Sources of images, all of one form."""

from ldm.data.digits import Digits
from ldm.data.emoji import Emoji
from ldm.data.table import Table

__all__ = ["Digits", "Emoji", "Table"]
