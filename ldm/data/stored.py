"""Sources of encoded pictures: from splits of listed samples to decoded tables, one pair or a pair a bucket."""

import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.buckets import Buckets, Shape, assign, shapes
from ldm.data.decode import Decoder, Split, Tally, big_files, in_order
from ldm.data.listing import COLUMNS, Sample, Store
from ldm.data.table import Table, cached_parts
from ldm.errors import UserError, did_you_mean
from ldm.images import READER, Preprocess, probe
from ldm.randomness import permutation

Head = tuple[int, int, int, int]  # height, width, channels, bits
_log = logging.getLogger("ldm")


class Stored:
    """What sources of encoded pictures have in common. Subclasses say what the splits are and what names them."""

    def __init__(
        self,
        size: int | Sequence[int] | None,
        channels: int | None,
        bits: int | None,
        val_share: float,
        columns: Sequence[str] | Mapping[str, str] | None,
        max_bad_share: float,
        options: Mapping[str, Any],
        bucket_step: int | None = None,
        bucket_least: int = 1,
    ):
        if not 0 < val_share < 1:
            raise UserError(f"data.val_share={val_share} must lie between 0 and 1.")
        if size is not None and not isinstance(size, int) and len(size) != 2:
            raise UserError(f"data.size={list(size)}: give one number or [height, width].")
        self.size = as_shape(size)
        self.channels, self.bits, self.val_share, self.max_bad_share = channels, bits, val_share, max_bad_share
        self.columns, self.options = column_names(columns), dict(options)
        self.bucket_step, self.bucket_least = bucket_step, bucket_least
        # a wrong option is told before any file is read
        height, width = self.size or (1, 1)
        Preprocess(channels or 3, height, width, bits or 8, **{k: v for k, v in options.items() if k != "background"})

    @property
    def default_condition(self) -> str | None:
        train = self._splits[0][1]
        if any(sample.text is not None or sample.caption is not None for sample in train):
            return "text"
        return "label" if any(sample.label is not None for sample in train) else None

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, decoded once and cached under `cache`."""
        key = self._key()
        if self.bucket_step:
            made = cached_parts(Path(cache), key, lambda folder: self._make_buckets(key, folder))
            pair = _in_buckets(made, key)
        else:
            made = cached_parts(Path(cache), key, lambda folder: self._make(key, folder))
            pair = made["train"], made["val"]
        skipped = Path(cache) / key / "skipped.json"
        report(json.loads(skipped.read_text("utf-8")), skipped, pair[0])
        return pair

    @property
    def _splits(self) -> tuple[Split, Split]:
        """(store, samples) of training and validation."""
        raise NotImplementedError

    def _key(self) -> str:
        """Names content and preprocessing."""
        raise NotImplementedError

    def _classes(self) -> Sequence[str]:
        """The names of the labels 0, 1, ..., where the source knows them."""
        return ()

    def _about(self) -> list[Any]:
        """The options that shape the tables."""
        about = [
            READER,
            self.size,
            self.channels,
            self.bits,
            self.options,
            self.columns,
            self.val_share,
            self.max_bad_share,
        ]
        return [*about, self.bucket_step, self.bucket_least] if self.bucket_step else about

    def _make(self, key: str, folder: Path) -> dict[str, Table]:
        found = [] if self.size and self.channels and self.bits else list(self._heads.values())
        return self._decode({"": (self._preprocess(self.size or _common_size(self._heads), found), *self._splits)},
                            key, folder)  # fmt: skip

    def _make_buckets(self, key: str, folder: Path) -> dict[str, Table]:
        """A pair of tables for each shape that training has; validation's images go to the nearest of these."""
        if not self.size or self.size[0] != self.size[1]:
            raise UserError("data.buckets=true needs data.size, the side of a square of the area that all shall have.")
        assert self.bucket_step
        known, heads = shapes(self.size[0], self.bucket_step), self._heads
        (store, train), (val_store, val) = self._splits
        square = (1, 1)  # what can't be read goes anywhere, and is counted when it is decoded
        sizes, val_sizes = ([heads.get((s.where, row.image), square)[:2] for row in rows] for s, rows in self._splits)
        of_train = assign(sizes, known, self.bucket_least)
        used = np.unique(of_train)
        of_val = used[assign(val_sizes, [known[i] for i in used])]
        jobs = {}
        for i in used.tolist():
            rows, val_rows = (
                [r for r, at in zip(*pair, strict=True) if at == i] for pair in ((train, of_train), (val, of_val))
            )
            preprocess = self._preprocess(known[i], list(heads.values()))
            jobs[f"-{known[i][0]}x{known[i][1]}"] = preprocess, (store, rows), (val_store, val_rows)
        return self._decode(jobs, key, folder)

    def _decode(self, jobs: Mapping[str, tuple[Preprocess, Split, Split]], key: str, folder: Path) -> dict[str, Table]:
        """Tables `train` and `val` for each job, its name behind theirs."""
        train, val = self._splits
        tally = Tally(len(train[1]) + len(val[1]), self.max_bad_share)
        tables = {}
        for suffix, (preprocess, *pair) in jobs.items():
            decoder = Decoder.of(train, val, preprocess, self._classes())
            for name, split in zip((f"train{suffix}", f"val{suffix}"), pair, strict=True):
                if split[1]:
                    tables[name] = decoder.table(split, folder / name, f"{key}-{name}", tally)
        tally.check()
        (folder / "skipped.json").write_text(json.dumps(tally.bad, ensure_ascii=False, indent=1), "utf-8")
        if all("map" in table.columns for table in tables.values()):
            highest = max(int(np.max(table.columns["map"])) for table in tables.values())
            for table in tables.values():
                table.map_classes = tuple(str(i) for i in range(highest + 1))
        return tables

    def _preprocess(self, size: Shape, heads: Sequence[Head]) -> Preprocess:
        """The declared channels and bits, those that weren't read off the images' heads."""
        counts = Counter(channels for _, _, channels, _ in heads)
        # grey among colour becomes colour; where more channels occur, the most frequent number counts
        most = max(counts) if max(counts, default=0) <= 3 else counts.most_common(1)[0][0]
        bits = self.bits or max(bits for *_, bits in heads)
        return Preprocess(self.channels or most, *size, bits, **self.options)

    @cached_property
    def _heads(self) -> dict[tuple[str, str], Head]:
        """Height, width, channels and bits of every image whose head can be read, by its store and path."""

        def head(store: Store, sample: Sample) -> tuple[tuple[str, str], Head] | None:
            try:
                small = store.entries.get(sample.image, (0, 0))[0] < 2**16  # a zip's members are slow to seek in
                with io.BytesIO(store.read(sample.image)) if small else store.open(sample.image) as file:
                    return (store.where, sample.image), probe(file)
            except Exception:  # whatever it is,
                return None  # it is counted when it is decoded

        pairs = [(store, sample) for store, found in self._splits for sample in found]
        threads = any(big_files(store, found) for store, found in self._splits)
        heads = dict(found for found in in_order(lambda pair: head(*pair), pairs, threads=threads) if found)
        if not heads:
            raise UserError(f"none of the {len(pairs)} images in {self._splits[0][0].where} can be read.")
        return heads


def split_off(store: Store, found: list[Sample], share: float) -> tuple[Split, Split]:
    """A fixed random `share` of the samples for validation, the others for training."""
    if len(found) < 2:
        raise UserError(f"{store.where} holds too few images, {len(found)}; training and validation need one each.")
    order = permutation(0, 0, len(found))
    n_val = max(1, round(share * len(found)))
    train, val = np.sort(order[n_val:]), np.sort(order[:n_val])
    return (store, [found[i] for i in train]), (store, [found[i] for i in val])


def column_names(columns: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """By column the name that the source's metadata has for it."""
    for key in columns or ():
        if key not in COLUMNS:
            raise UserError(f"data.columns: there is no column '{key}'.{did_you_mean(key, COLUMNS)}")
    if isinstance(columns, Mapping):
        return {key: columns.get(key, key) for key in COLUMNS}
    return {key: key for key in COLUMNS if columns is None or key in columns}


def as_shape(size: int | Sequence[int] | None) -> Shape | None:
    """One side, or (height, width), as both."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _common_size(heads: Mapping[tuple[str, str], Head]) -> Shape:
    sizes: dict[Shape, str] = {}
    for (_, path), (height, width, *_) in heads.items():
        sizes.setdefault((height, width), path)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise UserError(
            f"the images have {len(sizes)} sizes ({first} is {a[0]}x{a[1]}, {second} {b[0]}x{b[1]}, height x width); "
            "set data.size to one number or [height, width]."
        )
    return next(iter(sizes))


def _in_buckets(tables: Mapping[str, Table], key: str) -> tuple[Table, Table]:
    made = {
        split: Buckets.of([t for name, t in tables.items() if name.startswith(split)], f"{key}-{split}")
        for split in ("train", "val")
    }
    counts = {"x".join(map(str, t.images.shape[2:])): len(t) for t in made["train"].buckets}
    print("buckets: " + ", ".join(f"{n} images of {shape}" for shape, n in counts.items()), flush=True)
    return made["train"], made["val"]


def report(bad: Mapping[str, str], where: Path, train: Table) -> None:
    """Says at every start what the data lack."""
    if bad:
        _log.warning("%d images couldn't be used and are left out; %s lists them", len(bad), where)
    tables: Sequence[Table] = getattr(train, "buckets", [train])
    missing = sum(not text for table in tables for text in table.columns.get("text", ()))
    if missing:
        _log.warning("%d of %d images have no caption and get an empty one", missing, sum(map(len, tables)))
