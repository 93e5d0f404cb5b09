"""Pictures to arrays and back.

An image is (C, H, W) uint8 or uint16 on disk and float32 in [-1, 1] in a batch.
"""

from ldm.images.output import Pictures, grid, save_png, to_pil8
from ldm.images.preprocess import Preprocess
from ldm.images.reading import IMAGES, BadImage, open_image, open_map, open_mask, probe

__all__ = [
    "IMAGES",
    "BadImage",
    "Pictures",
    "Preprocess",
    "grid",
    "open_image",
    "open_map",
    "open_mask",
    "probe",
    "save_png",
    "to_pil8",
]
