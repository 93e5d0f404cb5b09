"""Columns whose rows are read, or made, only when they are used."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.storage.mapped import ByPath


class Lazy(ByPath, Sequence[Any]):
    """A sequence made of its length and `row`; a subclass defines both."""

    def row(self, i: int) -> Any:
        """Row `i`, 0 <= i < len(self)."""
        raise NotImplementedError

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self.row(k) for k in range(*i.indices(len(self)))]
        return self.row(range(len(self))[i])  # counts negative ones from the end, and raises IndexError

    def __iter__(self) -> Iterator[Any]:
        return map(self.row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:3]}{', ...' if len(self) > 3 else ''})"


class Json(Lazy):
    """The list in a JSON file, read when it is first used."""

    def __init__(self, path: Path):
        self.path = path.absolute()
        self._rows: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._read())

    def row(self, i: int) -> Any:
        """The element `i` of the list."""
        return self._read()[i]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_rows": None}

    def _read(self) -> list[Any]:
        if self._rows is None:
            self._rows = json.loads(self.path.read_text("utf-8"))
        return self._rows


class Joined(Lazy):
    """Several sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def row(self, i: int) -> Any:
        """Row `i` of all parts one after the other; `ends` are the rows at which the parts end."""
        part = int(np.searchsorted(self.ends, i, "right"))
        return self.parts[part][i - (int(self.ends[part - 1]) if part else 0)]
