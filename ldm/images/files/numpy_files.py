"""Arrays in .npy files."""

import io
import math
from typing import BinaryIO

import numpy as np

from ldm.images.files.unreadable import BadImage

NPY = b"\x93NUMPY"


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and data type of an array, from its file's header."""
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def read_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file. Raises BadImage for a file that is shorter than its header says."""
    shape, dtype = npy_header(io.BytesIO(content))
    if math.prod(shape) * dtype.itemsize > len(content):
        raise BadImage(f"has a header for {shape} values, more than the file holds")
    return np.load(io.BytesIO(content), allow_pickle=False)
