"""The latent cache: every image through the first stage once; stage two then trains without it."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import model_hash, to_json
from ldm.data.table import Table
from ldm.files import atomic_write
from ldm.networks import AutoencoderKL, Identity

log = logging.getLogger("ldm")


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
    """The latents of `table`, from the cache under `root` if this first stage and these data made one before."""
    key = hashlib.sha256(f"{model_hash(first_stage)} {table.key}".encode()).hexdigest()[:20]
    folder = root / "latents" / key
    if not _whole(folder):
        _make(table, first_stage, folder, batch_size)
    return _open(table, folder)


def _make(table: Table, first_stage: AutoencoderKL | Identity, folder: Path, batch_size: int) -> None:
    """Encodes in a folder of its own and renames it when whole: processes that start together don't write into the
    same files, and an interrupted one leaves nothing that looks finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        encode_table(table, first_stage, work, batch_size)
        work.chmod(0o755)  # mkdtemp's own is private to the user
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder)
        try:
            os.rename(work, folder)
        except OSError:
            if not _whole(folder):  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _whole(folder: Path) -> bool:
    return (folder / "latents.json").is_file()


@torch.inference_mode()
def encode_table(table: Table, first_stage: AutoencoderKL | Identity, folder: Path, batch_size: int) -> None:
    """Writes the moments of every image into `folder`; latents.json comes last and makes the cache whole."""
    height, width = (side // first_stage.factor for side in table.images.shape[2:])
    shape = (len(table), first_stage.latent_channels, height, width)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for name in ("mean", "std")
    }
    device = next((p.device for p in first_stage.parameters()), torch.device("cpu"))
    log.info("encoding %d images into latents %s", len(table), "x".join(map(str, shape[1:])))
    for rows in torch.arange(len(table)).split(batch_size):
        images = table.batch(rows.numpy(), ["image"])["image"].to(device)
        posterior = first_stage.encode(images)
        arrays["mean"][rows[0] : rows[-1] + 1] = posterior.mean.cpu()
        arrays["std"][rows[0] : rows[-1] + 1] = posterior.std.cpu()
    for array in arrays.values():
        array.flush()
    atomic_write(folder / "latents.json", to_json(_statistics(arrays["mean"], arrays["std"])))


def _statistics(mean: np.ndarray, std: np.ndarray, chunk: int = 4096) -> dict[str, Any]:
    """Mean and std of each channel over all images, in float64, by the law of total variance."""
    axes, total, square, variance, count = (0, 2, 3), 0.0, 0.0, 0.0, mean[:, 0].size
    for start in range(0, len(mean), chunk):
        m, s = mean[start : start + chunk].astype(np.float64), std[start : start + chunk].astype(np.float64)
        total, square, variance = total + m.sum(axes), square + (m**2).sum(axes), variance + (s**2).sum(axes)
    centre = np.asarray(total / count)
    spread = np.sqrt(np.maximum(square / count - centre**2, 0) + variance / count)
    return {"n": len(mean), "channel_mean": centre.tolist(), "channel_std": np.maximum(spread, 1e-6).tolist()}


def _open(table: Table, folder: Path) -> LatentTable:
    statistics = json.loads((folder / "latents.json").read_text())
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    channel_mean, channel_std = (torch.tensor(statistics[f"channel_{name}"]) for name in ("mean", "std"))
    return LatentTable(table, mean, std, channel_mean, channel_std)
