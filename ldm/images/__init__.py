"""Image files and arrays to tensors and back, preprocessing, masks and control images.

An image is (C, H, W) uint8 or uint16 on disk and float32 in [-1, 1] in a batch.
"""

from ldm.images.aspect import alike, check_alike, shape_of
from ldm.images.files.axes import SURE
from ldm.images.files.colour import CONVERTED, Notes
from ldm.images.files.metadata import check_metadata
from ldm.images.files.probing import probe
from ldm.images.files.reading import IMAGES, READER, ReadOptions, open_image, open_map, open_unconverted
from ldm.images.files.unreadable import BadImage
from ldm.images.masks import open_mask
from ldm.images.output import ImageList, grid, save_png, to_pil8
from ldm.images.preprocess import TRANSPARENT, Preprocess

__all__ = [
    "CONVERTED",
    "IMAGES",
    "READER",
    "SURE",
    "TRANSPARENT",
    "BadImage",
    "ImageList",
    "Notes",
    "Preprocess",
    "ReadOptions",
    "alike",
    "check_alike",
    "check_metadata",
    "grid",
    "open_image",
    "open_map",
    "open_mask",
    "open_unconverted",
    "probe",
    "save_png",
    "shape_of",
    "to_pil8",
]
