"""Images to be scored, however many: only a batch of them is in memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.data.storage.table import Table, hash_of
from ldm.evaluation.measures.image_set import as_bytes, image_paths
from ldm.images import BadImage, Preprocess, probe


@dataclass(frozen=True)
class Images:
    """`read(start, stop)` gives RGB images (3, H, W) uint8, which may differ in size; there are `count`.

    `what` names them in a report. `key` identifies exactly these images, if what is measured of them may be cached.
    `texts` are their captions, where they have any. `about` says how they were generated, if we did it.
    """

    what: str
    count: int
    read: Callable[[int, int], Sequence[Tensor]]
    key: str = ""
    texts: Sequence[str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def batches(self, size: int) -> Iterator[Sequence[Tensor]]:
        """All images in order, `size` at a time."""
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))

    @classmethod
    def of_table(cls, table: Table, rows: np.ndarray, what: str, texts: Sequence[str] | None = None) -> "Images":
        """Those rows of a data set as they were prepared."""

        def read(start: int, stop: int) -> Sequence[Tensor]:
            """A batch of the rows."""
            return list(rgb(as_bytes(torch.from_numpy(np.array(table.images[rows[start:stop]])))))

        return cls(what, len(rows), read, hash_of("table", table.key, rows.tolist()), texts)

    @classmethod
    def of_array(cls, images: np.ndarray, what: str) -> "Images":
        """Images (N, H, W, 3) uint8, as ADM stores them in `arr_0` of a .npz file."""
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
        return cls(what, len(images), lambda start, stop: list(channels_first[start:stop]))

    @classmethod
    def of_files(cls, paths: Sequence[Path], what: str, texts: Sequence[str] | None = None) -> "Images":
        """Image files as they are, each at its own size."""
        return cls(
            what, len(paths), lambda start, stop: [_read(path) for path in paths[start:stop]], _key(paths), texts
        )

    @classmethod
    def of_path(cls, named: str | Path) -> "Images":
        """The images of a folder, with the captions that its metadata.jsonl has for them, or of ADM's .npz file."""
        path = Path(named).expanduser()
        if path.suffix == ".npz":
            return cls.of_array(_array(path), f"images of {path.name}")
        paths = image_paths(path)
        return cls.of_files(paths, f"images of {path.name}", _captions(path, paths))


def rgb(images: Tensor) -> Tensor:
    """(N, C, H, W) as RGB: grey is repeated, of more channels the first three are used."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def _read(path: Path) -> Tensor:
    try:
        height, width, *_ = probe(path)
        return torch.from_numpy(Preprocess(3, height, width).array(path))
    except BadImage as error:
        raise UserError(f"{error}; remove it from the folder, or make it again.") from None


def _key(paths: Sequence[Path]) -> str:
    """A key of the files: equal as long as their names, sizes and modification times are."""
    digest = hashlib.sha256()
    for path in paths:
        state = path.stat()
        digest.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _array(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file["arr_0"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} can't be read as images ({error}): they have to be in arr_0, (N, H, W, 3).") from None
    if found.ndim != 4 or found.shape[3] != 3 or found.dtype != np.uint8:
        raise UserError(f"{path}: arr_0 is {found.dtype} {found.shape}, and images have to be uint8 (N, H, W, 3).")
    return found


def _captions(folder: Path, paths: Sequence[Path]) -> list[str] | None:
    """The `text` of each file in metadata.jsonl; None unless every file has one."""
    try:
        lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        by_name = {row["file_name"]: row["text"] for row in rows if isinstance(row.get("text"), str)}
        return [by_name[path.relative_to(folder).as_posix()] for path in paths]
    except (OSError, ValueError, KeyError, AttributeError):
        return None
