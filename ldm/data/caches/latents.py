"""The latent cache: every image is encoded by the first stage once, and stage two trains without it."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import encoder_hash, model_hash, to_json
from ldm.common.devices import device_of, temporarily_on, to_host
from ldm.common.errors import UserError
from ldm.common.files import atomic_write, one_at_a_time
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.mapped import ByPath
from ldm.data.storage.pieces import is_done, share
from ldm.data.storage.table import Table, images_on, new_array, values
from ldm.images import Preprocess
from ldm.networks import Autoencoder, Gaussian, Identity

log = logging.getLogger("ldm")
MANIFEST = "latents.json"
FirstStage = Autoencoder | Identity
PIECE = 2000  # images that are encoded as one piece: at most so many are encoded again after an interruption


@dataclass
class LatentTable(ByPath):
    """A table with the moments of the images' posteriors: `mean`, `std` (N, C, h, w) float32 or float16, memory-mapped.

    The moments are cached rather than one sample, as each visit samples anew. `channel_mean` and `channel_std` (C,) are
    those of sampled latents: the std includes both the spread of the means and that of the posteriors.
    """

    table: Table
    mean: np.ndarray
    std: np.ndarray
    channel_mean: Tensor
    channel_std: Tensor
    buckets: list["LatentTable"] = field(default_factory=list)
    reused: bool = False  # from a complete cache, so that nothing was encoded

    def __len__(self) -> int:
        return len(self.table)

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the images that were encoded."""
        return self.table.preprocess

    def batch(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """`latent_mean`, `latent_std` (B, C, h, w) float32 and the columns in `keys`; see `Table.batch`."""
        return values(self.gather(index, keys, draw), self.preprocess)

    def gather(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """The same batch as it is stored; see `Table.gather`."""
        moments = {
            "latent_mean": torch.from_numpy(self.mean[index]),
            "latent_std": torch.from_numpy(self.std[index]),
        }
        return moments | self.table.gather(index, keys, draw)


def cached_latents(
    table: Table,
    first_stage: FirstStage,
    root: Path,
    batch_size: int = 64,
    *,
    dtype: str = "float32",
    device: torch.device | str | None = None,
) -> LatentTable:
    """The latents of `table`, from the cache under `root` if it has those of this encoder and this table.

    A cache of an earlier version, named by the whole first stage instead of its encoder, is used too.
    Processes that start together share the work, and an interrupted cache is continued. Each bucket has a cache of its
    own, and all are whitened by the same statistics. `dtype` (float32 or float16) is the type of the stored moments;
    `device` is where they are computed, by default where the first stage is.

    Raises UserError for moments that aren't finite in `dtype`.
    """
    if isinstance(table, Buckets):
        parts = [cached_latents(t, first_stage, root, batch_size, dtype=dtype, device=device) for t in table.buckets]
        return _of_buckets(table, parts)
    about: dict[str, Any] = {"first_stage": encoder_hash(first_stage), "data": table.key, "n": len(table)}
    if dtype != "float32":  # earlier versions, which had no choice, wrote float32
        about["dtype"] = dtype
    folder = _folder(root, about)
    if _is_complete(folder):
        return replace(_open(table, folder), reused=True)
    former = _folder(root, about | {"first_stage": model_hash(first_stage)})
    if _is_complete(former):
        return replace(_open(table, former), reused=True)
    _print_reason(folder.parent, about)
    with temporarily_on(first_stage, device):
        _make(table, first_stage, folder, batch_size=batch_size, about=about)
    return _open(table, folder)


def _folder(root: Path, about: Mapping[str, Any]) -> Path:
    """The folder of the cache with this manifest."""
    named = " ".join(about[key] for key in ("first_stage", "data", "dtype") if key in about)
    return root / "latents" / hashlib.sha256(named.encode()).hexdigest()[:20]


def _make(table: Table, first_stage: FirstStage, folder: Path, *, batch_size: int, about: dict[str, Any]) -> None:
    """Encodes into a folder beside `folder`, renamed when complete, so that nothing unfinished has the cache's name."""
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process was faster and has renamed the folder
        dtype = about.get("dtype", "float32")
        encode_table(table, first_stage, work, batch_size, needless=lambda: _is_complete(folder), dtype=dtype)
        with one_at_a_time(work):
            if not _is_complete(folder):
                _finish(work, about)
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete copy
                work.rename(folder)
                for file in [*folder.glob("*.done"), *folder.glob("*.lock")]:
                    file.unlink()
            elif work.is_dir():
                shutil.rmtree(work, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    """Whether the cache is complete: it has its manifest, and its arrays have the sizes in there."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _print_reason(root: Path, about: Mapping[str, Any]) -> None:
    """If this table was encoded before by another first stage, prints that it is encoded again."""
    for manifest in root.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError):
            other = json.loads(manifest.read_text())
            if other.get("data") == about["data"] and other.get("first_stage") != about["first_stage"]:
                print(f"{manifest.parent} belongs to another first stage: encoding the data again", flush=True)
                return


@torch.inference_mode()
def encode_table(
    table: Table,
    first_stage: FirstStage,
    folder: Path,
    batch_size: int,
    needless: Callable[[], bool] = lambda: False,
    dtype: str = "float32",
) -> None:
    """Writes the moments of every image into `folder` in `dtype`, computed where the first stage is.

    It continues an interrupted call. Processes that start together share the images; all stop as soon as `needless`
    returns true, because another process has finished the work.
    """
    height, width = (side // first_stage.factor for side in table.images.shape[2:])
    shape = (len(table), first_stage.latent_channels, height, width)
    step = -(-PIECE // batch_size) * batch_size
    pieces = [f"rows-{start:09d}" for start in range(0, len(table), step)]
    with one_at_a_time(folder):
        _lay_out(folder, shape, np.dtype(dtype))
    if done := [piece for piece in pieces if is_done(folder, piece)]:
        encoded = min(len(done) * step, len(table))
        print(f"continuing the latents of an interrupted run at image {encoded} of {len(table)}", flush=True)
    arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in ("mean", "std")}
    device = device_of(first_stage)
    log.info("encoding %d images into latents %s", len(table), "x".join(map(str, shape[1:])))

    def encode(piece: str) -> None:
        """Writes the moments of `piece`, "rows-FIRST": `step` rows from FIRST on. Raises UserError where they aren't
        finite."""
        first = int(piece.removeprefix("rows-"))
        for rows in torch.arange(first, min(first + step, len(table))).split(batch_size):
            images = images_on(device, table, rows.numpy())
            posterior = first_stage.encode(images)
            found = to_host(*(moment.to(getattr(torch, dtype)) for moment in (posterior.mean, posterior.std)))
            _refuse_not_finite(found, posterior, rows=rows, table=table, dtype=dtype)
            for array, moment in zip(arrays.values(), found, strict=True):
                array[int(rows[0]) : int(rows[-1]) + 1] = moment.numpy()
        for array in arrays.values():
            array.flush()

    share(folder, pieces, encode, needless)


def _refuse_not_finite(found: list[Tensor], posterior: Gaussian, *, rows: Tensor, table: Table, dtype: str) -> None:
    """Raises UserError if `found`, the posterior's moments (B, C, h, w) as they are to be stored, aren't finite."""
    finite = torch.stack([moment.isfinite().flatten(1).all(1) for moment in found]).all(0)  # (B,)
    if finite.all():
        return
    row = int(rows[finite.logical_not().nonzero()[0, 0]])
    where = f"image {row}" + (f" ({table.names[row]})" if row < len(table.names) else "")
    if all(moment.isfinite().all() for moment in (posterior.mean, posterior.std)):
        raise UserError(f"the latents of {where} are too large for {dtype}: use latents_dtype=float32.")
    raise UserError(
        f"the first stage gives no finite latents for {where}: inspect it with evaluate.py stage=vae, and train it "
        "again with a smaller optimizer.lr."
    )


def _lay_out(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Creates the two arrays and marks all pieces as not done; keeps both if arrays of this shape and type exist."""
    with contextlib.suppress(OSError, ValueError):
        there = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std")]
        if all(array.shape == shape and array.dtype == dtype for array in there):
            return
    for done in folder.glob("*.done"):
        done.unlink()
    for name in ("mean", "std"):
        part = folder / f"{name}.part"
        new_array(part, dtype.type, shape)
        part.rename(folder / f"{name}.npy")


def _finish(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes latents.json. It is written last, and marks the cache as complete."""
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    sizes = {f"{name}.npy": (folder / f"{name}.npy").stat().st_size for name in ("mean", "std")}
    atomic_write(folder / MANIFEST, to_json({**about, **_statistics(mean, std), "bytes": sizes}))


def _statistics(mean: np.ndarray, std: np.ndarray, chunk: int = 4096) -> dict[str, Any]:
    """Mean and std of each channel over all sampled latents, in float64, by the law of total variance."""
    axes, total, square, variance, count = (0, 2, 3), 0.0, 0.0, 0.0, mean[:, 0].size
    for start in range(0, len(mean), chunk):
        m, s = mean[start : start + chunk].astype(np.float64), std[start : start + chunk].astype(np.float64)
        total, square, variance = total + m.sum(axes), square + (m**2).sum(axes), variance + (s**2).sum(axes)
    centre = np.asarray(total / count)
    spread = np.sqrt(np.maximum(square / count - centre**2, 0) + variance / count)
    return {"channel_mean": centre.tolist(), "channel_std": np.maximum(spread, 1e-6).tolist()}


def _of_buckets(table: Buckets, parts: Sequence[LatentTable]) -> LatentTable:
    """The latents of the largest bucket, with the statistics of all buckets."""
    weights = torch.tensor([part.mean[:, 0].size for part in parts], dtype=torch.float64)[:, None]
    means, stds = (torch.stack([getattr(p, f"channel_{name}").double() for p in parts]) for name in ("mean", "std"))
    mean = (weights * means).sum(0) / weights.sum()  # (C,)
    std = ((weights * (stds.square() + (means - mean).square())).sum(0) / weights.sum()).sqrt()
    largest = parts[max(range(len(parts)), key=lambda i: len(parts[i]))]
    return LatentTable(
        table=table,
        mean=largest.mean,
        std=largest.std,
        channel_mean=mean.float(),
        channel_std=std.float(),
        buckets=list(parts),
        reused=all(part.reused for part in parts),
    )


def _open(table: Table, folder: Path) -> LatentTable:
    statistics = json.loads((folder / MANIFEST).read_text())
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    channel_mean, channel_std = (torch.tensor(statistics[f"channel_{name}"]) for name in ("mean", "std"))
    return LatentTable(table=table, mean=mean, std=std, channel_mean=channel_mean, channel_std=channel_std)
