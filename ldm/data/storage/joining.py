"""Rows of several tables as one new table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.storage.table import FRAME, Column, Table, new_array

_CHUNK = 1024  # rows copied at once


def join_tables(tables: Sequence[Table], rows: Sequence[np.ndarray], folder: Path, key: str) -> Table:
    """The given rows of each table, one table after the other, as a new table with its arrays in `folder`."""
    columns = {
        name: _join_columns([table.columns[name] for table in tables], rows, folder / f"{name}.npy")
        for name in tables[0].columns
    }
    frames = None
    if all(table.frames is not None for table in tables):
        frames = np.asanyarray(_join_columns([table.each_frame for table in tables], rows, folder / f"{FRAME}.npy"))
    return Table(
        images=np.asanyarray(_join_columns([table.images for table in tables], rows, folder / "images.npy")),
        columns=columns,
        preprocess=tables[0].preprocess,
        key=key,
        names=_join_lists([table.names for table in tables], rows),
        frames=frames,
    )


def _join_columns(parts: Sequence[Any], rows: Sequence[np.ndarray], path: Path) -> Column:
    first = parts[0]
    if not isinstance(first, np.ndarray):
        return _join_lists(parts, rows)
    array = new_array(path, first.dtype.type, (sum(map(len, rows)), *first.shape[1:]))
    start = 0
    for part, chosen in zip(parts, rows, strict=True):
        for chunk in np.array_split(chosen, -(-len(chosen) // _CHUNK) or 1):
            array[start : start + len(chunk)] = np.asarray(part)[chunk]
            start += len(chunk)
    return array


def _join_lists(parts: Sequence[Any], rows: Sequence[np.ndarray]) -> list:
    return [part[i] for part, chosen in zip(parts, rows, strict=True) for i in chosen.tolist()]
