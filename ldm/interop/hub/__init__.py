"""The Hugging Face Hub: what `hf://OWNER/NAME` stands for, downloaded and verified; `push` is the way back."""

from ldm.interop.hub.address import is_address, name_of, origin_of
from ldm.interop.hub.download import fetch, local

__all__ = ["fetch", "is_address", "local", "name_of", "origin_of"]
