"""Tables with variants of their images: N images, then the first variant of each, then the second variant of each,
..."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ldm.common.ranks import rank
from ldm.data.augmenting.options import FLIPS, Variants
from ldm.data.augmenting.transforms import LABELS, parameters, settled, transform
from ldm.data.checking.texts import alternatives, says_sides
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.cached import cached_parts
from ldm.data.storage.table import AUGMENT, Column, Table, hash_of, new_array

_VERSION = "variants-1"
_SHOW_PROGRESS = 2000  # versions from which on a bar is shown
Crop = Callable[[Table, int, Path], Table]  # (table, k, folder) -> version k of its images, cropped
_log = logging.getLogger("ldm")


def with_variants(
    pair: tuple[Table, Table], options: Variants, cache: Path, crop: Crop | None = None
) -> tuple[Table, Table]:
    """Both tables: the training table with its variants, made once under `cache`, and validation. `crop` makes random
    crops.

    Row v N + i of the new table is variant v of image i. Validation images are unchanged; if there are labels of
    augmentation, theirs are zeros.
    """
    if options.count == 1:
        return pair
    train, val = (getattr(table, "buckets", None) or [table] for table in pair)
    made = [_cached(table, options, cache, crop) for table in train]
    if options.flip != "none":
        _report_sides(pair[0])
    seen = [_unchanged(table) for table in val] if options.augment else val
    if not isinstance(pair[0], Buckets):
        return made[0], seen[0]
    return Buckets.of(made, _key(pair[0], options)), Buckets.of(seen, pair[1].key)


def _key(table: Table, options: Variants) -> str:
    return f"{hash_of(_VERSION, table.key, vars(options))}-train"


def _cached(table: Table, options: Variants, cache: Path, crop: Crop | None) -> Table:
    key = _key(table, options)

    def make(folder: Path) -> dict[str, Table]:
        """The table of variants, with its arrays in `folder`."""
        return {"train": _make(table, options, key=key, folder=folder, crop=crop)}

    found = cached_parts(Path(cache), key.removesuffix("-train"), make)["train"]
    if rank() == 0:
        print(f"{options.count} variants of each of {len(table)} training images", flush=True)
    return replace(found, variants=options.count)


def _make(table: Table, options: Variants, *, key: str, folder: Path, crop: Crop | None) -> Table:
    """The table with all variants, its arrays in `folder`/train."""
    from tqdm import tqdm

    n, count = len(table), options.count
    arrays = {
        name: new_array(folder / "train" / f"{name}.npy", old.dtype.type, (count * n, *old.shape[1:]))
        for name, old in {"images": table.images, **_spatial(table)}.items()
    }
    labels = _labels(table, options)  # (count, n, 11)
    frames: list[np.ndarray] = []
    bar = tqdm(desc="making variants", total=count * n, disable=count * n < _SHOW_PROGRESS, mininterval=1)
    for version in range(options.variants):
        is_cropped = crop is not None and options.zoom > 1 and version > 0
        of = crop(table, version, folder / "crops") if crop and is_cropped else table
        frames += [] if of.each_frame is None else [np.asarray(of.each_frame)]
        for number, axes in enumerate(FLIPS[options.flip]):
            block = number * options.variants + version
            for name, array in arrays.items():
                _fill(array[block * n : (block + 1) * n], _array(of, name), axes, labels[block])
            bar.update(n)
    bar.close()
    shutil.rmtree(folder / "crops", ignore_errors=True)
    return Table(
        images=arrays.pop("images"),
        columns=_columns(table, arrays, count) | ({AUGMENT: labels.reshape(-1, LABELS)} if options.augment else {}),
        preprocess=table.preprocess,
        key=key,
        names=list(table.names) * count,
        classes=table.classes,
        map_classes=table.map_classes,
        frames=np.concatenate(frames * len(FLIPS[options.flip])) if frames else None,
        variants=count,
    )


def _labels(table: Table, options: Variants) -> np.ndarray:
    """The labels of all variants (count, n, 11), random numbers by the row of the new table. The first version of each
    flip has a label of zeros."""
    n = len(table)
    labels = settled(parameters(torch.arange(options.count * n), options.augment), *table.images.shape[2:])
    shaped = labels.view(-1, options.variants, n, LABELS) * float(options.augment > 0)
    shaped[:, 0] = 0
    return shaped.reshape(-1, n, LABELS).numpy()


def _fill(array: np.ndarray, source: np.ndarray, axes: tuple[int, ...], labels: np.ndarray) -> None:
    """Writes the images (n, ...) of `source` into `array`, flipped and then transformed by their labels (n, 11)."""
    for row in range(len(array)):
        array[row] = _moved(np.flip(source[row], axes), labels[row])


def _spatial(table: Table) -> dict[str, np.ndarray]:
    """The columns that are transformed like the image: maps and masks (N, H, W), control images (N, C, H, W)."""
    size = table.images.shape[2:]
    columns = {name: column for name, column in table.columns.items() if isinstance(column, np.ndarray)}
    return {name: column for name, column in columns.items() if column.ndim > 2 and column.shape[-2:] == size}


def _array(table: Table, name: str) -> np.ndarray:
    return table.images if name == "images" else np.asarray(table.columns[name])


def _moved(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """An image (C, H, W), a map or a mask (H, W), transformed by its label. A label of zeros changes nothing."""
    if not label.any():
        return image
    planes = image if image.ndim == 3 else image[None]
    signed = planes.astype(np.int32) if planes.dtype == np.uint16 else planes  # torch does little with uint16
    moved = transform(torch.from_numpy(np.array(signed)), torch.from_numpy(label), image.ndim == 2).numpy()
    if moved.dtype != planes.dtype:
        moved = np.rint(moved).clip(0, np.iinfo(planes.dtype).max).astype(planes.dtype)
    return moved if image.ndim == 3 else moved[0]


def _columns(table: Table, arrays: dict[str, np.memmap], count: int) -> dict[str, Column]:
    """All columns of the new table: those in `made`, which were transformed like the image, and the others repeated."""
    return {name: arrays[name] if name in arrays else _repeated(table.columns[name], count) for name in table.columns}


def _repeated(column: Column, count: int) -> Column:
    if isinstance(column, np.ndarray):
        return np.concatenate([np.asarray(column)] * count)
    return list(column) * count


def _unchanged(table: Table) -> Table:
    """The table with labels of zeros, for images that are unchanged."""
    return replace(table, columns={**table.columns, AUGMENT: np.zeros((len(table), LABELS), np.float32)})


def _report_sides(table: Table) -> None:
    """Warns if captions contain left or right, which are wrong for flipped images."""
    parts = getattr(table, "buckets", None) or [table]
    captions = [alternatives(each) for part in parts for each in part.columns.get("text", ())]
    found = [each for each in captions if says_sides(each)]
    if found and rank() == 0:
        images = "1 caption says" if len(found) == 1 else f"{len(found)} of {len(captions)} captions say"
        _log.warning(
            "data.flip: %s left or right, as in '%s', which is wrong for mirror images: leave data.flip out, "
            "or reword them",
            images,
            next(caption for caption in found[0] if says_sides([caption]))[:80],
        )
