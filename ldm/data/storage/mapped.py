"""Memory maps that are pickled as the names of their files instead of copies of their content.

Pickling a numpy memory map reads all of it, and gives the other process an array of its own. Worker processes that are
spawned, not forked, get their data by pickling.
"""

import mmap
import os
from typing import Any, NamedTuple

import numpy as np


class FileMap(NamedTuple):
    """An array as a place in a file: `offset` in bytes, row-major."""

    path: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    mode: str

    def open(self) -> np.memmap:
        """The array, mapped."""
        return np.memmap(self.path, self.dtype, self.mode, self.offset, self.shape)  # type: ignore[call-overload]


class ByPath:
    """Pickles memory maps in its attributes, and in dicts there, as places in files, and everything else as it is."""

    def __getstate__(self) -> dict[str, Any]:
        return packed(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(unpacked(state))


def packed(value: Any) -> Any:
    """The value, with each memory map replaced by its place in a file, where another process can find it."""
    if isinstance(value, dict):
        return {key: packed(one) for key, one in value.items()}
    place = file_map(value) if isinstance(value, np.ndarray) else None
    return value if place is None else place


def unpacked(value: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, dict):
        return {key: unpacked(one) for key, one in value.items()}
    return value.open() if isinstance(value, FileMap) else value


def file_map(array: np.ndarray) -> FileMap | None:
    """Where `array` lies in a file; None for an array in memory, and for one whose file no longer exists."""
    owner, opened = _owner(array)
    if owner is None or opened is None or owner.mode == "c" or not array.flags.c_contiguous or not array.size:
        return None
    begin = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY  # where the mapped pages begin in the file
    offset = begin + _address(array) - _address(np.frombuffer(opened, np.uint8))
    path = str(owner.filename)
    if not os.path.exists(path) or os.path.getsize(path) < offset + array.nbytes:
        return None
    mode = "r+" if array.flags.writeable else "r"
    return FileMap(path=path, offset=offset, dtype=array.dtype, shape=array.shape, mode=mode)


def _owner(array: Any) -> tuple[np.memmap | None, mmap.mmap | None]:
    """The memory map that `array` is a view of, and the mapped pages."""
    owner = None
    while isinstance(array, np.ndarray):
        owner = array if isinstance(array, np.memmap) else owner
        array = array.base
    named = owner is not None and owner.filename is not None
    return (owner, array) if named and isinstance(array, mmap.mmap) else (None, None)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
