"""Random parts of images as further versions of them, decoded from the files: nothing is enlarged twice."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ldm.common.errors import UserError
from ldm.common.randomness import uniform
from ldm.data.preparing.decode import Decoder, Split, in_order
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store
from ldm.data.storage.table import FRAME, Table, new_array
from ldm.images import BadImage


def crops_of(position: np.ndarray, zoom: float) -> np.ndarray:
    """Random crops (B, 3) for the variants at `position` (B,): a zoom from 1 to `zoom`, log-uniform, and the position
    of the part from left (0) to right (1) and from top (0) to bottom (1)."""
    unit = uniform(0, "crop", torch.from_numpy(position), (3,)).double().numpy()
    return np.concatenate([zoom ** unit[:, :1], unit[:, 1:]], 1)


def cropped_table(
    decoder: Decoder, splits: Iterable[Split], table: Table, *, version: int, zoom: float, folder: Path
) -> Table:
    """Version `version` of the images of a table, each a random part. `splits` are where its samples are.

    Raises UserError where a file has become unreadable.
    """
    samples = _samples_of(table, splits)
    crops = crops_of(version * len(table) + np.arange(len(table)), zoom)

    def decode(row: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, cropped. Raises UserError for an image that could be read before and can't any
        more."""
        (store, sample), crop = samples[row], crops[row]
        found, _ = decoder.cropped(*crop.tolist()).one(store, sample)
        if isinstance(found, BadImage):
            raise UserError(f"{sample.image} can't be read any more ({found}): start again.")
        return found

    arrays: dict[str, np.ndarray] = {}
    for row, found in enumerate(in_order(decode, range(len(table)), 64)):
        for name, value in found.items():
            if name not in arrays:
                arrays[name] = new_array(folder / f"{name}.npy", value.dtype.type, (len(table), *value.shape))
            arrays[name][row] = value
    images, frames = arrays.pop("images"), arrays.pop(FRAME)
    return replace(table, images=images, columns={**table.columns, **arrays}, frames=frames)


def _samples_of(table: Table, splits: Iterable[Split]) -> list[tuple[Store, Sample]]:
    """The sample of each row; several of one file in their order."""
    found: dict[str, list[tuple[Store, Sample]]] = defaultdict(list)
    for store, samples in splits:
        for sample in samples:
            found[sample.image].append((store, sample))
    seen: dict[str, int] = defaultdict(int)
    rows = []
    for name in table.names:
        rows.append(found[name][min(seen[name], len(found[name]) - 1)])
        seen[name] += 1
    return rows
