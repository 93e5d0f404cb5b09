"""Captions and names in memory-mapped files: a million of them take no memory of the process."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.storage.lazy import Lazy


class Strings(Lazy):
    """A sequence of strings, or of lists of strings, read when a row is used.

    Its files in a folder are `NAME.utf8` with all strings one after the other, `NAME.ends.npy` (K,) with the byte at
    which each ends and, where rows are lists, `NAME.rows.npy` (N,) with the string at which each row ends. A list of
    one string is read as that string.
    """

    def __init__(self, folder: Path, name: str):
        self.ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")
        rows = folder / f"{name}.rows.npy"
        self.rows = np.load(rows, mmap_mode="r") if rows.exists() else None
        file = folder / f"{name}.utf8"
        self.bytes = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)

    @staticmethod
    def fits(column: Any) -> bool:
        """Whether all of `column` are strings or lists of strings."""
        return all(isinstance(text, str) for row in column for text in (row if isinstance(row, list) else [row]))

    @staticmethod
    def save(folder: Path, name: str, column: Sequence[Any]) -> None:
        """Writes a column into `folder`."""
        nested = any(isinstance(row, list) for row in column)
        rows = [row if isinstance(row, list) else [row] for row in column]
        parts = [text.encode("utf-8", "surrogatepass") for row in rows for text in row]
        (folder / f"{name}.utf8").write_bytes(b"".join(parts))
        np.save(folder / f"{name}.ends.npy", _ends(parts))
        if nested:
            np.save(folder / f"{name}.rows.npy", _ends(rows))

    def __len__(self) -> int:
        return len(self.ends if self.rows is None else self.rows)

    def row(self, i: int) -> Any:
        """The string of row `i`, or its list of strings."""
        if self.rows is None:
            return self._text(i)
        texts = [self._text(k) for k in range(int(self.rows[i - 1]) if i else 0, int(self.rows[i]))]
        return texts[0] if len(texts) == 1 else texts

    def _text(self, k: int) -> str:
        start, end = int(self.ends[k - 1]) if k else 0, int(self.ends[k])
        return self.bytes[start:end].tobytes().decode("utf-8", "surrogatepass")


def _ends(parts: Sequence[Any]) -> np.ndarray:
    """The end of each part, (K,), counted from the start of the first part."""
    return np.fromiter(accumulate(map(len, parts)), np.int64, len(parts))
