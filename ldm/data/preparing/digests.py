"""Byte-equal copies of images among shards, by digests that are kept with the pieces."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ldm.data.reading.sample import Seen, plural
from ldm.data.reading.store import Store

_FILE = "digests.npy"


def save_digests(store: Store, paths: Sequence[str], folder: Path) -> None:
    """Keeps in `folder` 64 bits of each image's SHA-256, (N,): of a million images two share them once in 40 million
    cases."""
    digests = [int.from_bytes(sha256(store.read(path)).digest()[:8]) for path in paths]
    np.save(folder / _FILE, np.array(digests, np.uint64))


def images_of(folders: Sequence[Path], seen: Seen) -> np.ndarray:
    """The number of each sample's image (N,), counted from 0 in the order of their coming; copies have one number,
    unless these are all that there is."""
    digests = _read(folders)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copied = len(digests) - len(first)
    if not copied:
        return np.arange(len(digests))
    if len(first) < 2:
        seen.note(f"all {len(digests)} images are the same, byte for byte: validation measures memory alone")
        return np.arange(len(digests))
    seen.aside(f"{plural(copied, 'image')} copied byte for byte: copies stay on one side of the split")
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse]


def tell_shared(train: Sequence[Path], val: Sequence[Path], seen: Seen) -> None:
    """Notes images for validation that are trained on as well."""
    if n := int(np.isin(_read(val), _read(train)).sum()):
        said = f"{plural(n, 'image')} for validation with the bytes of one for training"
        seen.note(f"{said}: validation measures memory there; take one of each away")


def _read(folders: Sequence[Path]) -> np.ndarray:
    return np.concatenate([np.load(folder / _FILE) for folder in folders])
