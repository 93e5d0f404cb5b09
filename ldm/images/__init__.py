"""Pictures to arrays and back.

An image is (C, H, W) uint8 or uint16 on disk and float32 in [-1, 1] in a batch.
"""

from ldm.images.aspect import alike, check_alike, shape_of
from ldm.images.axes import SURE
from ldm.images.colour import CONVERTED, Notes
from ldm.images.masks import open_mask
from ldm.images.metadata import check_metadata
from ldm.images.output import Pictures, grid, save_png, to_pil8
from ldm.images.preprocess import TRANSPARENT, Preprocess
from ldm.images.reading import IMAGES, READER, open_image, open_map, probe, turned
from ldm.images.unknown import BadImage

__all__ = [
    "CONVERTED",
    "IMAGES",
    "READER",
    "SURE",
    "TRANSPARENT",
    "BadImage",
    "Notes",
    "Pictures",
    "Preprocess",
    "alike",
    "check_alike",
    "check_metadata",
    "grid",
    "open_image",
    "open_map",
    "open_mask",
    "probe",
    "save_png",
    "shape_of",
    "turned",
    "to_pil8",
]
