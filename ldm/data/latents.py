"""The latent cache: every image through the first stage once; stage two then trains without it."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import model_hash, to_json
from ldm.data.table import Table
from ldm.files import atomic_write, one_at_a_time
from ldm.networks import AutoencoderKL, Identity

log = logging.getLogger("ldm")
MANIFEST, PROGRESS = "latents.json", "rows"
NOTE_EVERY = 2000  # images


@dataclass
class LatentTable:
    """A table whose images are kept as the moments of their posterior: `mean`, `std` (N, C, h, w) float32,
    memory-mapped.

    The moments are cached, not one draw of them: each visit draws anew. `channel_mean`, `channel_std` (C,) describe the
    latents as drawn: the std counts the spread of the means and that of the posteriors.
    """

    table: Table
    mean: np.ndarray
    std: np.ndarray
    channel_mean: Tensor
    channel_std: Tensor

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """`latent_mean`, `latent_std` (B, C, h, w) and the other columns; pixels only if `keys` asks for `image`."""
        moments = {
            "latent_mean": torch.from_numpy(self.mean[index]),
            "latent_std": torch.from_numpy(self.std[index]),
        }
        return moments | self.table.batch(index, keys, draw)


def cached_latents(
    table: Table, first_stage: AutoencoderKL | Identity, root: Path, batch_size: int = 64
) -> LatentTable:
    """The latents of `table`, from the cache under `root` if this first stage and these data made one before.

    Processes that start together make it once: one encodes, the others wait. One that was interrupted is gone on with.
    """
    about = {"first_stage": model_hash(first_stage), "data": table.key, "n": len(table)}
    key = hashlib.sha256(f"{about['first_stage']} {table.key}".encode()).hexdigest()[:20]
    folder = root / "latents" / key
    if not _whole(folder):
        _say_why(folder.parent, about)
        _make(table, first_stage, folder, batch_size, about)
    return _open(table, folder)


def _make(
    table: Table, first_stage: AutoencoderKL | Identity, folder: Path, batch_size: int, about: dict[str, Any]
) -> None:
    """Encodes in a folder beside it, which is renamed when whole, so nothing unfinished ever has the cache's name."""
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(work):
        if not _whole(folder):
            encode_table(table, first_stage, work, batch_size, about)
            shutil.rmtree(folder, ignore_errors=True)  # a copy that was cut short
            work.rename(folder)
        elif work.is_dir():  # another process was faster
            shutil.rmtree(work, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """Whether the cache has its manifest, and the arrays the size that it tells."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _say_why(root: Path, about: Mapping[str, Any]) -> None:
    """Says so where these data were encoded before, by a first stage that has other weights or preprocessing."""
    for manifest in root.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError):
            other = json.loads(manifest.read_text())
            if other.get("data") == about["data"] and other.get("first_stage") != about["first_stage"]:
                print(f"{manifest.parent} is of another first stage: encoding these data anew", flush=True)
                return


@torch.inference_mode()
def encode_table(
    table: Table, first_stage: AutoencoderKL | Identity, folder: Path, batch_size: int, about: Mapping[str, Any]
) -> None:
    """Writes the moments of every image into `folder`, from the row on that an interrupted call had come to.

    latents.json comes last and makes the cache whole.
    """
    height, width = (side // first_stage.factor for side in table.images.shape[2:])
    shape = (len(table), first_stage.latent_channels, height, width)
    done = _rows_done(folder, shape)
    if done:
        print(f"going on with the latents of an interrupted run at image {done} of {len(table)}", flush=True)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+" if done else "w+", np.float32, shape)
        for name in ("mean", "std")
    }
    device = next((p.device for p in first_stage.parameters()), torch.device("cpu"))
    log.info("encoding %d images into latents %s", len(table), "x".join(map(str, shape[1:])))
    noted = done
    for rows in torch.arange(done, len(table)).split(batch_size):
        images = table.batch(rows.numpy(), ["image"])["image"].to(device)
        posterior = first_stage.encode(images)
        end = int(rows[-1]) + 1
        arrays["mean"][rows[0] : end] = posterior.mean.cpu()
        arrays["std"][rows[0] : end] = posterior.std.cpu()
        if end - noted >= NOTE_EVERY:
            noted = _note(folder, arrays, end)
    for array in arrays.values():
        array.flush()
    sizes = {f"{name}.npy": (folder / f"{name}.npy").stat().st_size for name in arrays}
    atomic_write(folder / MANIFEST, to_json({**about, **_statistics(arrays["mean"], arrays["std"]), "bytes": sizes}))


def _note(folder: Path, arrays: Mapping[str, np.memmap], rows: int) -> int:
    """Notes how many rows are on the disk."""
    for array in arrays.values():
        array.flush()
    atomic_write(folder / PROGRESS, str(rows))
    return rows


def _rows_done(folder: Path, shape: tuple[int, ...]) -> int:
    try:
        done = int((folder / PROGRESS).read_text())
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std")]
    except (OSError, ValueError):
        return 0
    return done if all(array.shape == shape for array in arrays) and 0 < done <= shape[0] else 0


def _statistics(mean: np.ndarray, std: np.ndarray, chunk: int = 4096) -> dict[str, Any]:
    """Mean and std of each channel over all images, in float64, by the law of total variance."""
    axes, total, square, variance, count = (0, 2, 3), 0.0, 0.0, 0.0, mean[:, 0].size
    for start in range(0, len(mean), chunk):
        m, s = mean[start : start + chunk].astype(np.float64), std[start : start + chunk].astype(np.float64)
        total, square, variance = total + m.sum(axes), square + (m**2).sum(axes), variance + (s**2).sum(axes)
    centre = np.asarray(total / count)
    spread = np.sqrt(np.maximum(square / count - centre**2, 0) + variance / count)
    return {"channel_mean": centre.tolist(), "channel_std": np.maximum(spread, 1e-6).tolist()}


def _open(table: Table, folder: Path) -> LatentTable:
    statistics = json.loads((folder / MANIFEST).read_text())
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    channel_mean, channel_std = (torch.tensor(statistics[f"channel_{name}"]) for name in ("mean", "std"))
    return LatentTable(table, mean, std, channel_mean, channel_std)
