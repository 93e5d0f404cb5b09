"""Your own images: a folder or a .zip, decoded once into memory-mapped arrays."""

import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.decode import Decoder, Tally, big_files, in_order
from ldm.data.listing import COLUMNS, Sample, Store, open_store, samples
from ldm.data.table import Table, cached, hash_of
from ldm.errors import UserError, did_you_mean
from ldm.images import Preprocess, probe
from ldm.randomness import permutation
from ldm.registry import register

_VERSION = "folder-1"
_VALIDATION = ("val", "valid", "validation", "test")
_log = logging.getLogger("ldm")
Split = tuple[Store, list[Sample]]


@register
class Folder:
    """A folder or .zip of images, with what it says about them.

    - `metadata.jsonl` as the Hugging Face image folder has it: one line of JSON an image, with `file_name` and any of
      `text` (a caption, or a list of alternatives), `label`, and the paths `map`, `mask`, `control`;
    - or NAME.txt beside NAME.png, one caption a line; and one subfolder for each class.

    Splits: `train/` and `val/` (`valid/`, `validation/`, `test/`) where there are both; otherwise `val_root`, or a
    fixed random `val_share`. `columns` takes only some columns ([text]) or gives their names in the metadata
    ({text: caption}). `size` is a number or [height, width] and defaults to the images' own where all agree; `channels`
    and `bits` default to what the images hold. `resize`, `background`, `low` and `high`: see Preprocess. What can't be
    read is left out and counted; more than `max_bad_share` of it stops the run.
    """

    def __init__(
        self,
        root: str,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        bits: int | None = None,
        val_share: float = 0.05,
        val_root: str | None = None,
        resize: str = "cover",
        columns: Sequence[str] | Mapping[str, str] | None = None,
        max_bad_share: float = 0.01,
        background: Sequence[float] | None = None,
        low: float | None = None,
        high: float | None = None,
    ):
        if not 0 < val_share < 1:
            raise UserError(f"data.val_share={val_share} must lie between 0 and 1.")
        if size is not None and not isinstance(size, int) and len(size) != 2:
            raise UserError(f"data.size={list(size)}: give one number or [height, width].")
        self.root, self.val_root, self.val_share = root, val_root, val_share
        self.size = (size, size) if isinstance(size, int) else tuple(size) if size is not None else None
        self.channels, self.bits, self.max_bad_share = channels, bits, max_bad_share
        self.columns = _column_names(columns)
        self.options: dict[str, Any] = {"resize": resize, "background": background, "low": low, "high": high}
        # a wrong option is told before any file is read
        height, width = self.size or (1, 1)
        Preprocess(channels or 3, height, width, bits or 8, resize=resize, low=low, high=high)

    @property
    def name(self) -> str:
        path = Path(self.root).expanduser().resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def default_condition(self) -> str | None:
        train = self._splits[0][1]
        if any(sample.text is not None or sample.caption is not None for sample in train):
            return "text"
        return "label" if any(sample.label is not None for sample in train) else None

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, decoded once and cached under `cache`."""
        stores = {store.where: store for store, _ in self._splits}
        about = [self.size, self.channels, self.bits, self.options, self.columns, self.val_share, self.max_bad_share]
        key = hash_of(
            _VERSION, self.val_root is None, [list(store.entries.items()) for store in stores.values()], about
        )
        tables = cached(Path(cache), key, lambda folder: self._make(key, folder))
        _report_skipped(Path(cache) / key / "skipped.json")
        return tables

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        """(store, samples) of training and validation."""
        store = open_store(self.root)
        folder = next((name for name in _VALIDATION if name in store.tops), "")
        inner = "train" if "train" in store.tops and (folder or self.val_root or len(store.tops) == 1) else ""
        train = samples(store, inner, self.columns)
        if self.val_root is not None:
            other = open_store(self.val_root)
            within = next((name for name in _VALIDATION if name in other.tops and "train" in other.tops), "")
            val = other, samples(other, within, self.columns)
        elif inner and folder:
            val = store, samples(store, folder, self.columns)
        else:
            if len(train) < 2:
                raise UserError(f"{store.where} holds {len(train)} images; training and validation need one each.")
            order = permutation(0, 0, len(train))
            n_val = max(1, round(self.val_share * len(train)))
            val = store, [train[i] for i in np.sort(order[:n_val])]
            train = [train[i] for i in np.sort(order[n_val:])]
        for source, found in ((store, train), val):
            if not found:
                raise UserError(f"{source.where} holds no images for {'training' if found is train else 'validation'}.")
        return (store, train), val

    def _make(self, key: str, folder: Path) -> tuple[Table, Table]:
        preprocess = self._preprocess()
        train, val = self._splits
        decoder = Decoder.of(train, val, preprocess)
        tally = Tally(len(train[1]) + len(val[1]), self.max_bad_share)
        tables = tuple(
            decoder.table(split, folder / name, f"{key}-{name}", tally)
            for split, name in ((train, "train"), (val, "val"))
        )
        tally.check()
        (folder / "skipped.json").write_text(json.dumps(tally.bad, ensure_ascii=False, indent=1), "utf-8")
        if "map" in tables[0].columns:
            highest = max(int(np.max(table.columns["map"])) for table in tables)
            for table in tables:
                table.map_classes = tuple(str(i) for i in range(highest + 1))
        return tables[0], tables[1]

    def _preprocess(self) -> Preprocess:
        """The declared size, channels and bits, those that weren't read off the images' heads."""
        found = [] if self.size and self.channels and self.bits else self._heads()
        height, width = self.size or _common_size(found)
        counts = Counter(channels for _, _, _, channels, _ in found)
        # grey among colour becomes colour; where more channels occur, the most frequent number counts
        most = max(counts) if max(counts, default=0) <= 3 else counts.most_common(1)[0][0]
        bits = self.bits or max(bits for *_, bits in found)
        return Preprocess(self.channels or most, height, width, bits, **self.options)

    def _heads(self) -> list[tuple[str, int, int, int, int]]:
        """(path, height, width, channels, bits) of every image whose head can be read."""

        def head(store: Store, sample: Sample) -> tuple[str, int, int, int, int] | None:
            try:
                small = store.entries.get(sample.image, (0, 0))[0] < 2**16  # a zip's members are slow to seek in
                with io.BytesIO(store.read(sample.image)) if small else store.open(sample.image) as file:
                    return sample.image, *probe(file)
            except Exception:  # whatever it is,
                return None  # it is counted when it is decoded

        pairs = [(store, sample) for store, found in self._splits for sample in found]
        threads = any(big_files(store, found) for store, found in self._splits)
        heads = [found for found in in_order(lambda pair: head(*pair), pairs, threads=threads) if found]
        if not heads:
            raise UserError(f"none of the {len(pairs)} images in {self.root} can be read.")
        return heads


def _column_names(columns: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    for key in columns or ():
        if key not in COLUMNS:
            raise UserError(f"data.columns: there is no column '{key}'.{did_you_mean(key, COLUMNS)}")
    if isinstance(columns, Mapping):
        return {key: columns.get(key, key) for key in COLUMNS}
    return {key: key for key in COLUMNS if columns is None or key in columns}


def _common_size(heads: Sequence[tuple[Any, ...]]) -> tuple[int, int]:
    sizes: dict[tuple[int, int], str] = {}
    for path, height, width, *_ in heads:
        sizes.setdefault((height, width), path)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise UserError(
            f"the images have {len(sizes)} sizes ({first} is {a[0]}x{a[1]}, {second} {b[0]}x{b[1]}, height x width); "
            "set data.size to one number or [height, width]."
        )
    return next(iter(sizes))


def _report_skipped(path: Path) -> None:
    skipped = json.loads(path.read_text("utf-8"))
    if skipped:
        _log.warning("%d images couldn't be used and are left out; %s lists them", len(skipped), path)
