"""A split of a data set as arrays on disk: the form in which every source gives its data."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.files import reserve_space, writing
from ldm.common.registry import build, spec_of
from ldm.data.storage.lazy import Json, Lazy
from ldm.data.storage.mapped import ByPath
from ldm.data.storage.strings import Strings
from ldm.images import Preprocess

Column = np.ndarray | list | Lazy
BATCH_KEYS = ("image", "label", "text", "map", "mask", "control")
FRAME = "frame"  # an entry of batches: see `Table.frames`
AUGMENT = "augment"  # a column: what was done to a variant, (N, 11), zeros for the image itself
REPEATS = "repeats"  # a column: how often an epoch visits each sample; without it once


@dataclass
class Table(ByPath):
    """N samples: `images` (N, C, H, W) uint8 or uint16, usually a memory map, and columns of the same length.

    Columns with a meaning are `label` (N,) int64, `text` captions (or lists of alternative captions) in a list or
    `Strings`, `map` (N, H, W) uint8 class ids, `mask` (N, H, W) uint8 of 0 and 255, and `control` (N, C', H, W) uint8.
    Others are kept as they are. `frames`, whole numbers (N, 6), or (6,) if all images have the same, are the
    `Preprocess.frame` of each image: its own size, the corner of its crop, and the size that it is resized to. It is
    None for tables of earlier versions. Each image has `variants` versions: first come the images themselves, then all
    first variants, and so on. `key` names data and preprocessing: equal keys mean equal arrays. A loaded table is
    pickled as the names of its files, a table in memory as a copy.
    """

    images: np.ndarray
    columns: dict[str, Column]
    preprocess: Preprocess
    key: str
    names: Sequence[str] = ()
    classes: tuple[str, ...] = ()
    map_classes: tuple[str, ...] = field(default=())
    frames: np.ndarray | None = None
    variants: int = 1

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self):
                raise ValueError(f"column '{name}' has {len(column)} entries for {len(self)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def originals(self) -> int:
        """The number of original images, which are the first rows; their variants follow."""
        return len(self) // self.variants

    def batch(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """The samples `index` (B,) as a batch with the entries `keys`. Raises UserError for a column that isn't there.

        `image` (B, C, H, W) in [-1, 1], `label` (B,) int64, `text` list of B, `map` (B, H, W) int64, `mask`
        (B, 1, H, W) of 0 and 1, `control` (B, C', H, W) in [-1, 1]. `draw` (B,) in [0, 1) chooses among alternative
        captions; without it the first is chosen.
        """
        return values(self.gather(index, keys, draw), self.preprocess)

    def gather(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """The same batch as it is stored: pixels, maps and masks as bytes, which reach a device four times faster than
        floats. There `values` turns it into a batch."""
        out: dict[str, Any] = {}
        for key in keys:
            if key == "image":
                out[key] = torch.from_numpy(np.asarray(self.images[index]))  # (B, C, H, W)
            elif key == FRAME and self.frames is not None:
                chosen = self.frames if self.frames.ndim == 1 else self.frames[index]
                out[key] = torch.from_numpy(np.array(chosen, np.int64)).expand(len(index), -1).contiguous()  # (B, 6)
            elif key not in self.columns:
                known = ", ".join(["image", *self.columns])
                raise UserError(f"the data has no '{key}' (it has {known}); choose another conditioner or other data.")
            elif key == "text":
                out[key] = _captions(self.columns[key], index, draw)
            else:
                out[key] = torch.from_numpy(np.asarray(np.asarray(self.columns[key])[index]))
        return out

    def gives(self, key: str) -> bool:
        """Whether a batch of this table can have the entry `key`."""
        return key == "image" or key in self.columns or (key == FRAME and self.frames is not None)

    @property
    def each_frame(self) -> np.ndarray | None:
        """The frames as (N, 6)."""
        return None if self.frames is None else np.broadcast_to(self.frames, (len(self), self.frames.shape[-1]))

    def check_frames(self, where: str) -> None:
        """Raises UserError for a table without frames; `where` names what reads them."""
        if self.frames is None:
            folder = self.key.split("-")[0]
            raise UserError(
                f"{where} reads the images' own sizes, which these prepared data lack, since an earlier version "
                f"made them: remove the folder {folder} from cache/data, so that they are prepared again. (If "
                "the source is your own, it has to give Table(frames=).)"
            )

    def save(self, folder: Path) -> None:
        """Writes the table into `folder`; `table.json` comes last and marks the rest as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"images": self.images, **self.columns, "names": self.names}
        kinds = {name: _save_column(folder, name, column) for name, column in columns.items()}
        if self.frames is not None:
            _save_column(folder, FRAME, self.frames)
        about = {
            "length": len(self),
            "columns": {name: kinds[name] for name in self.columns},
            "names": kinds["names"],
            "preprocess": spec_of(self.preprocess),
            "key": self.key,
            "classes": self.classes,
            "map_classes": self.map_classes,
            "variants": self.variants,
        }
        replace_file(folder / "table.json", json.dumps(about, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> "Table":
        """The table saved in `folder`, its arrays memory-mapped."""
        about = json.loads((folder / "table.json").read_text("utf-8"))
        length = about["length"]
        framed = (folder / f"{FRAME}.npy").is_file()  # not so in tables of earlier versions
        return cls(
            images=np.load(folder / "images.npy", mmap_mode="r")[:length],
            columns={name: _load_column(folder, name, kind, length) for name, kind in about["columns"].items()},
            preprocess=build(about["preprocess"]),
            key=about["key"],
            names=_load_column(folder, "names", about.get("names", "json"), length),
            classes=tuple(about["classes"]),
            map_classes=tuple(about["map_classes"]),
            frames=_load_frames(folder, length) if framed else None,
            variants=about.get("variants", 1),
        )


def made_so(table: Table) -> Table:
    """The table with the frames of images that were made at their size, neither resized nor cropped."""
    return replace(table, frames=np.array(table.preprocess.frame(*table.images.shape[2:]), np.int32))


def new_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """An array in a new .npy file, to be filled piece by piece. `Table.save` into its folder leaves it as it is.

    Its space on the disk is allocated at once: if a disk fills up under a memory map, the kernel ends the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        try:
            reserve_space(path)
        except OSError:
            path.unlink()
            raise
    return array


def hash_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits that identify plain data (SHA-256 of its JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _captions(column: Column, index: np.ndarray, draw: np.ndarray | None) -> list[str]:
    rows = [column[i] for i in index.tolist()]
    if all(isinstance(row, str) for row in rows):
        return rows
    at = np.zeros(len(rows)) if draw is None else np.asarray(draw)
    return [row if isinstance(row, str) else row[int(at[i] * len(row))] for i, row in enumerate(rows)]


def values(batch: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    """A gathered batch with pixels as floats, ids as int64 and masks of 0 and 1, on its device. Entries that already
    have this form are unchanged."""
    return {key: _value(key, value, preprocess) for key, value in batch.items()}


def images_on(device: torch.device | str, table: Table, index: np.ndarray) -> Tensor:
    """The images `index` (B,) as (B, C, H, W) in [-1, 1], transferred to the device as bytes."""
    gathered = table.gather(index, ["image"])
    return values({key: send(value, device) for key, value in gathered.items()}, table.preprocess)["image"]


def _value(key: str, value: Any, preprocess: Preprocess) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return value
    if key in ("latent_mean", "latent_std"):
        return value.float()
    if value.is_floating_point():
        return value
    if key in ("image", "control"):
        return preprocess.to_tensor(value)
    if key == "mask":
        return (value > 127).float()[:, None]  # (B, 1, H, W)
    if key == "loss_mask":
        return value.float()[:, None] / 255  # (B, 1, H, W)
    return value.long()


def _save_column(folder: Path, name: str, column: Any) -> str:
    """Writes a column in the form that suits it; returns the name of that form."""
    path = folder / f"{name}.npy"
    if isinstance(column, np.memmap) and Path(str(column.filename)).resolve() == path.resolve():
        column.flush()  # it was made in this file
        return "npy"
    if isinstance(column, np.ndarray):
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, column)
        part.replace(path)
        return "npy"
    if Strings.fits(column):
        Strings.save(folder, name, column)
        return "strings"
    replace_file(folder / f"{name}.json", json.dumps(list(column), ensure_ascii=False).encode())
    return "json"


def _load_column(folder: Path, name: str, kind: str, length: int) -> Any:
    if kind == "strings":
        return Strings(folder, name)
    if kind == "json":
        return Json(folder / f"{name}.json")
    # a source that skips bad images leaves unused rows at the end
    return np.load(folder / f"{name}.npy", mmap_mode="r")[:length]


def _load_frames(folder: Path, length: int) -> np.ndarray:
    frames = np.load(folder / f"{FRAME}.npy", mmap_mode="r")
    return frames[:length] if frames.ndim > 1 else frames


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` under a temporary name beside `path`, then renames it."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def column_names(columns: Mapping[str, Column]) -> tuple[str, ...]:
    """The entries that a batch of a table with these columns can have."""
    return tuple(key for key in BATCH_KEYS if key == "image" or key in columns)
