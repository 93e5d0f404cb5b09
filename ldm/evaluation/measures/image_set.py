"""A set of pictures to be measured, which knows how it was prepared: only what was prepared alike is compared."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.registry import spec_of
from ldm.data.storage.table import Table
from ldm.images import BadImage, Preprocess, probe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy")


@dataclass(frozen=True)
class Pictures:
    """`images` (N, C, H, W) uint8: generated ones too are rounded to what a file holds. `what` names them in a report,
    `prepared` is the preprocessing they went through, `key` names the very pictures if their features may be cached."""

    images: Tensor
    prepared: Mapping[str, Any]
    what: str
    key: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "Pictures":
        return replace(self, images=self.images[rows], key=None)

    @classmethod
    def of_table(cls, table: Table, rows: np.ndarray, what: str) -> "Pictures":
        """Those rows of a data set."""
        images = torch.from_numpy(np.ascontiguousarray(table.images[rows]))
        return cls(as_bytes(images), spec_of(table.preprocess), what, f"{table.key} {_digest(rows)}")

    @classmethod
    def of_tensor(cls, images: Tensor, preprocess: Preprocess, what: str) -> "Pictures":
        """A model's output, (N, C, H, W) in [-1, 1]."""
        return cls(to_bytes(images).cpu(), spec_of(preprocess), what)

    @classmethod
    def of_folder(cls, folder: str | Path, preprocess: Preprocess | None, resize: bool, most: int) -> "Pictures":
        """Picture files, at most `most` of them, spread evenly over their sorted names.

        They are read as `preprocess` says; another size is refused unless they are to `resize`d. Without `preprocess`
        the first picture says what the others have to be like.
        """
        paths = picture_paths(folder)
        chosen = [paths[i * len(paths) // min(most, len(paths))] for i in range(min(most, len(paths)))]
        declared = preprocess or _like(chosen[0])
        reader = declared if resize else _same_size(declared)
        try:
            arrays = np.stack([reader.array(path) for path in chosen])
        except BadImage as error:
            raise UserError(
                f"{error}. What is compared has to be prepared alike: give pictures of that size, or let size= resize "
                "the folders' pictures."
            ) from None
        return cls(as_bytes(torch.from_numpy(arrays)), spec_of(declared), f"{len(chosen)} files of {Path(folder).name}")


def refuse_unlike(a: Pictures, b: Pictures) -> None:
    """Raises UserError if two sets were prepared differently: the distance would measure that too."""
    differing = [
        f"{key} {_shown(a.prepared.get(key))} against {_shown(b.prepared.get(key))}"
        for key in sorted({*a.prepared, *b.prepared})
        if a.prepared.get(key) != b.prepared.get(key)
    ]
    if differing:
        raise UserError(
            f"{a.what} and {b.what} were prepared differently ({', '.join(differing)}), so a distance between them "
            "would measure that too; compare what was prepared alike."
        )


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to uint8, as it is saved to a file."""
    return images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float().mul(2 / 255).sub(1)


def as_bytes(images: Tensor) -> Tensor:
    """uint8 as it is, uint16 rounded to it."""
    return images if images.dtype == torch.uint8 else ((images.to(torch.int32) + 128) // 257).to(torch.uint8)


def picture_paths(folder: str | Path) -> list[Path]:
    """The pictures in a folder and those below it, by name."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder of pictures, nor a run's name.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    return paths


def _like(path: Path) -> Preprocess:
    height, width, channels, bits = probe(path)
    return Preprocess(channels, height, width, bits)


def _same_size(preprocess: Preprocess) -> Preprocess:
    return Preprocess(**{k: v for k, v in spec_of(preprocess).items() if k != "class"} | {"resize": "none"})


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()[:16]


def _shown(value: Any) -> str:
    return "unsaid" if value is None else str(value)
