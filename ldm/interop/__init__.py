"""Models from and for the tools that people already use: diffusers, CompVis checkpoints, LoRA files.

Mappings of names are data (`name_tables`, `compvis`), checked to be bijections. What can't be represented is refused by
name.
"""

from ldm.interop.diffusers_folder import controlnet_in, is_diffusers, load_folder
from ldm.interop.files.foreign_embeddings import embedding_in
from ldm.interop.recognition import check_readable, is_single_file
from ldm.interop.single_file import load_single_file

__all__ = [
    "check_readable",
    "controlnet_in",
    "embedding_in",
    "is_diffusers",
    "is_single_file",
    "load_folder",
    "load_single_file",
]
