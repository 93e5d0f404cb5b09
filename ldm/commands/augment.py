"""`augment.py`: variants of every image of a folder by an autoencoder, written as a folder that `data=folder` reads.

Captions, labels, maps, masks and control images are copied: a variant shows what its image shows, in the same places.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.devices import device_of, send, to_host
from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.common.registry import build
from ldm.data.storage.table import Table, images_on
from ldm.images import Preprocess
from ldm.model.computing import device
from ldm.model.loading import load
from ldm.networks import Autoencoder
from ldm.training.runs.folder import find_run
from ldm.training.trainer.fit import cache_of, import_modules


def main(config: dict[str, Any], job: str | None = None) -> None:
    """Writes `n` variants of each image, and with `originals` the images themselves, into the new folder `out`."""
    import_modules(config)
    out = Path(config["out"])
    _check(config, out)
    path = find_run("vae", config["run"], config["runs_dir"])
    model = load(path, device(config["device"]), precision="float32")
    vae = model if isinstance(model, Autoencoder) else getattr(model, "first_stage", None)
    if not isinstance(vae, Autoencoder):
        raise UserError(f"run={config['run']} holds no autoencoder; name a run of train_vae.py.")
    train, val = build(config["data"], "data").tables(cache_of(config) / "data")
    if hasattr(train, "buckets"):
        raise UserError("augment.py takes images of one shape: leave data.buckets out.")
    _refuse_other_preprocessing(vae, train.preprocess, str(path))
    count = _write(vae, train, out / "train", config) + _write(vae, val, out / "val", config)
    print(f"{count} images: {out}; train on them with data=folder data.root={out}", flush=True)


def _check(config: Mapping[str, Any], out: Path) -> None:
    n, temperature = config["n"], config["temperature"]
    if n < 1 or temperature < 0:
        raise UserError(f"n={n}, temperature={temperature}: give at least one variant, and a temperature of 0 or more.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out} isn't empty: name another folder.")


def _write(vae: Autoencoder, table: Table, out: Path, config: Mapping[str, Any]) -> int:
    """Writes the variants of a table's images with their metadata.jsonl; returns the number of images."""
    lines = []
    kept = [key for key in ("map", "mask") if key in table.columns]
    control = "control" in table.columns
    folders = ["images", *(f"{key}s" for key in kept)]
    if control:
        folders.append("controls")
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    for row, variants in _variants(vae, table, config):
        about = {key: value for key in ("text", "label") if (value := _column_value(table, key, row)) is not None}
        for key in kept:
            about[key] = f"{key}s/{row:07d}.png"
            _save_ids(out / about[key], np.asarray(table.columns[key][row]))
        if control:
            about["control"] = _save(out / "controls" / f"{row:07d}", np.asarray(table.columns["control"][row]), out)
        arrays = list(variants.numpy())
        if config["originals"]:
            arrays.insert(0, np.asarray(table.images[row]))
        for i, array in enumerate(arrays):
            name = f"images/{row:07d}-{i}"
            lines.append(json.dumps({"file_name": _save(out / name, array, out), **about}, ensure_ascii=False))
    atomic_write(out / "metadata.jsonl", "\n".join(lines) + "\n")
    return len(lines)


def _variants(vae: Autoencoder, table: Table, config: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """Each row with its variants (n, C, H, W), as the integers of a file."""
    place = device_of(vae)
    for rows in torch.arange(len(table)).split(config["batch_size"]):
        images = images_on(place, table, rows.numpy())
        variants = vae.augment(
            images, config["n"], config["temperature"], seed=config["seed"], position=send(rows, place)
        )
        yield from zip(rows.tolist(), to_host(table.preprocess.to_uint(variants))[0], strict=True)


def _column_value(table: Table, key: str, row: int) -> Any:
    if key not in table.columns:
        return None
    value = table.columns[key][row]
    if key != "label":
        return value
    name = table.classes[int(value)] if table.classes else str(value)
    return int(value) if name == str(value) else name


def _save(path: Path, array: np.ndarray, root: Path) -> str:
    """Saves (C, H, W) as PNG where that format can hold it, else as .npy; returns the file's path under `root`."""
    from PIL import Image

    channels = len(array)
    if array.dtype == np.uint8 and channels in (1, 3, 4) or channels == 1:
        path = path.with_suffix(".png")
        Image.fromarray(array[0] if channels == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))).save(path)
    else:
        path = path.with_suffix(".npy")
        np.save(path, array.transpose(1, 2, 0))
    return path.relative_to(root).as_posix()


def _save_ids(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(array).save(path)


def _refuse_other_preprocessing(vae: Any, given: Preprocess, where: str) -> None:
    own: Preprocess = getattr(vae, "preprocess", given)
    for key in ("channels", "bits", "low", "high"):
        if getattr(own, key) != getattr(given, key):
            raise UserError(
                f"{where} was trained on images with {key} {getattr(own, key)}, these have {getattr(given, key)}: "
                f"give data.{key}={getattr(own, key)}, or another run=."
            )
