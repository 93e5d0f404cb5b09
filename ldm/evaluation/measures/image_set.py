"""A set of images to be measured, with its preprocessing: only sets that were prepared alike are compared."""

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
class ImageSet:
    """`images` (N, C, H, W) uint8; generated images are rounded to 8 bits too, as in a file.

    `prepared` is their preprocessing, and `what` names them in a report. `key` identifies exactly these images, if
    their features may be cached.
    """

    images: Tensor
    prepared: Mapping[str, Any]
    what: str
    key: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "ImageSet":
        return replace(self, images=self.images[rows], key=None)

    @classmethod
    def of_table(cls, table: Table, rows: np.ndarray, what: str) -> "ImageSet":
        """Those rows of a data set."""
        images = torch.from_numpy(np.ascontiguousarray(table.images[rows]))
        return cls(as_bytes(images), spec_of(table.preprocess), what, f"{table.key} {_digest(rows)}")

    @classmethod
    def of_tensor(cls, images: Tensor, preprocess: Preprocess, what: str) -> "ImageSet":
        """A model's output, (N, C, H, W) in [-1, 1]."""
        return cls(to_bytes(images).cpu(), spec_of(preprocess), what)

    @classmethod
    def of_folder(cls, folder: str | Path, preprocess: Preprocess | None, resize: bool, most: int) -> "ImageSet":
        """Image files of a folder, at most `most` of them, spread evenly over their sorted names.

        `preprocess` says how they are read; without it, the first image sets size, channels and bits for the others.
        Raises UserError for an image of another size, unless `resize` is set.
        """
        paths = image_paths(folder)
        chosen = [paths[i * len(paths) // min(most, len(paths))] for i in range(min(most, len(paths)))]
        declared = preprocess or _like(chosen[0])
        reader = declared if resize else _same_size(declared)
        try:
            arrays = np.stack([reader.array(path) for path in chosen])
        except BadImage as error:
            raise UserError(
                f"{error}. Images that are compared have to be prepared in the same way: give images of that size, "
                "or resize the folders' images with size=."
            ) from None
        return cls(as_bytes(torch.from_numpy(arrays)), spec_of(declared), f"{len(chosen)} files of {Path(folder).name}")


def refuse_unlike(a: ImageSet, b: ImageSet) -> None:
    """Raises UserError if two sets were prepared differently, because a distance would measure that too."""
    differing = [
        f"{key} {_shown(a.prepared.get(key))} against {_shown(b.prepared.get(key))}"
        for key in sorted({*a.prepared, *b.prepared})
        if a.prepared.get(key) != b.prepared.get(key)
    ]
    if differing:
        raise UserError(
            f"{a.what} and {b.what} were prepared differently ({', '.join(differing)}), so a distance between them "
            "would measure that too; compare images that were prepared in the same way."
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


def image_paths(folder: str | Path) -> list[Path]:
    """The image files in a folder and the folders below it, by name."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder of images, nor a run's name.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}).")
    return paths


def _like(path: Path) -> Preprocess:
    height, width, channels, bits = probe(path)
    return Preprocess(channels, height, width, bits)


def _same_size(preprocess: Preprocess) -> Preprocess:
    return Preprocess(**{k: v for k, v in spec_of(preprocess).items() if k != "class"} | {"resize": "none"})


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()[:16]


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
