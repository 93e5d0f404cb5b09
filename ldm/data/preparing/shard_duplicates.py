"""Byte-equal copies of images in shards, by digests that are kept with the decoded pieces."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ldm.data.reading.findings import Findings, plural
from ldm.data.reading.store import Store

_FILE = "digests.npy"


def save_digests(store: Store, paths: Sequence[str], folder: Path) -> None:
    """Writes 64 bits of each image's SHA-256, (N,), into `folder`.

    Among a million different images, the chance that any two collide is one in 40 million.
    """
    digests = [int.from_bytes(sha256(store.read(path)).digest()[:8]) for path in paths]
    np.save(folder / _FILE, np.array(digests, np.uint64))


def images_of(folders: Sequence[Path], findings: Findings) -> np.ndarray:
    """The number of each sample's image (N,), counted from 0 in their order. Copies have the same number, unless all
    images are copies of one."""
    digests = _read(folders)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copied = len(digests) - len(first)
    if not copied:
        return np.arange(len(digests))
    if len(first) < 2:
        findings.warn(f"all {len(digests)} images are the same, byte for byte: validation only measures memorization")
        return np.arange(len(digests))
    findings.remark(f"{plural(copied, 'image')} copied byte for byte: copies stay on one side of the split")
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse]


def report_shared(train: Sequence[Path], val: Sequence[Path], findings: Findings) -> None:
    """Warns of validation images that are trained on as well."""
    if n := int(np.isin(_read(val), _read(train)).sum()):
        images = "1 validation image is a copy" if n == 1 else f"{n} validation images are copies"
        message = f"{images} of training images, byte for byte"
        findings.warn(f"{message}, where validation only measures memorization: remove one of each")


def _read(folders: Sequence[Path]) -> np.ndarray:
    return np.concatenate([np.load(folder / _FILE) for folder in folders])
