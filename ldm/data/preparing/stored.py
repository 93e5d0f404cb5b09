"""Sources of encoded pictures: from splits of listed samples to decoded tables, one pair or a pair a bucket."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.common.ranks import rank
from ldm.data.folders.usual import tell_alike
from ldm.data.preparing.decode import Decoder, Split, Tally, big_files, in_order
from ldm.data.preparing.doubts import doubts
from ldm.data.preparing.summary import FILE, Facts, by_name, facts_of, tell
from ldm.data.reading.caption_json import OURS
from ldm.data.reading.sample import COLUMNS, Sample, Seen, plural
from ldm.data.reading.store import Store
from ldm.data.storage.buckets import Buckets, Shape, assign, shapes
from ldm.data.storage.table import Table, cached_parts
from ldm.images import READER, SURE, Preprocess, probe

Head = tuple[int, int, int, int]  # height, width, channels, bits
# What captions are: a file is one, or one a line; they are inside of the images; lists are tags of one.
WHOLE, LINES, EMBEDDED, TAGS = "whole", "lines", "embedded", "tags"


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
        captions: str = WHOLE,
    ):
        if not 0 < val_share < 1:
            raise UserError(f"data.val_share={val_share} must lie between 0 and 1.")
        self.size = as_shape(size)
        self.channels, self.bits, self.val_share, self.max_bad_share = channels, bits, val_share, max_bad_share
        self.columns, self.options = column_names(columns), dict(options)
        self.bucket_step, self.bucket_least = bucket_step, bucket_least
        self.captions, self.seen = check_captions(captions), Seen()
        # a wrong option is told before any file is read
        height, width = self.size or (1, 1)
        without = {k: v for k, v in options.items() if k != "background"}
        Preprocess(3 if channels is None else channels, height, width, 8 if bits is None else bits, **without)

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
        if self.channels is None and pair[0].preprocess.channels > SURE:
            _ = self._heads  # refuses arrays whose axes can't be told, also where an older version decoded them
        home = Path(cache) / key
        self._sum_up(home, pair[0].preprocess)
        return pair

    def _sum_up(self, home: Path, preprocess: Preprocess) -> None:
        """Says what was found when the tables were made, and what the listing finds now, which may have been made by
        another version's."""
        facts = Facts.load(home)
        seen = self.seen
        tell_alike(facts.classes, seen)
        unread = by_name(seen.unread)
        found = doubts(*self._splits[0], preprocess, self.channels) if facts.doubts is None else facts.doubts
        now = replace(facts, doubts=found, left_out=seen.left_out, unread=unread, notes=seen.notes, asides=seen.asides)
        if now != facts and rank() == 0:
            now.save(home)
        tell(now, home / FILE)

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
            decoder = Decoder.of(train, val, preprocess, self._classes(), self.captions, self.columns.get("text", OURS))
            for name, split in zip((f"train{suffix}", f"val{suffix}"), pair, strict=True):
                if split[1]:
                    of = f"for {'training' if name.startswith('train') else 'validation'}"
                    tables[name] = decoder.table(split, folder / name, f"{key}-{name}", tally, of)
        tally.check()
        self._facts(tables, tally).save(folder)
        if all("map" in table.columns for table in tables.values()):
            highest = max(int(np.max(table.columns["map"])) for table in tables.values())
            for table in tables.values():
                table.map_classes = tuple(str(i) for i in range(highest + 1))
        return tables

    def _facts(self, tables: Mapping[str, Table], tally: Tally) -> Facts:
        training, validation = (sum(len(t) for n, t in tables.items() if n.startswith(s)) for s in ("train", "val"))
        one = next(iter(tables.values()))
        captioned = training + validation - len(tally.no_caption) if "text" in one.columns else 0
        counts = (training, validation, self._split_said())
        return facts_of(self.seen, self._splits[0][0].where, *counts, tally, captioned, one.classes)

    def _split_said(self) -> str:
        """How validation was chosen."""
        return f"a fixed random {self.val_share:g} of all"

    def _preprocess(self, size: Shape, heads: Sequence[Head]) -> Preprocess:
        """The declared channels and bits, those that weren't read off the images' heads."""
        bits = self.bits or max(bits for *_, bits in heads)
        return Preprocess(self.channels or _channels(heads), *size, bits, **self.options)

    @cached_property
    def _heads(self) -> dict[tuple[str, str], Head]:
        """Height, width, channels and bits of every image whose head can be read, by its store and path."""

        def head(store: Store, sample: Sample) -> tuple[tuple[str, str], Head] | None:
            try:
                small = store.entries.get(sample.image, (0, 0))[0] < 2**16  # a zip's members are slow to seek in
                with io.BytesIO(store.read(sample.image)) if small else store.open(sample.image) as file:
                    return (store.where, sample.image), probe(file, self.channels)
            except Exception:  # whatever it is,
                return None  # it is counted when it is decoded

        pairs = [(store, sample) for store, found in self._splits for sample in found]
        threads = any(big_files(store, found) for store, found in self._splits)
        heads = dict(found for found in in_order(lambda pair: head(*pair), pairs, threads=threads) if found)
        if not heads:
            store, sample = pairs[0]
            images = f"{plural(len(pairs), 'image')} in {store.where}"
            raise UserError(f"none of the {images} can be read: {_fault(store, sample, self.channels)}.")
        return heads


def _channels(heads: Sequence[Head]) -> int:
    """Grey among colour becomes colour; where more channels occur, the most frequent number counts."""
    counts = Counter(channels for _, _, channels, _ in heads)
    return max(counts) if max(counts) <= 3 else counts.most_common(1)[0][0]


def _fault(store: Store, sample: Sample, channels: int | None) -> str:
    """Why an image's head can't be read."""
    try:
        with store.open(sample.image) as file:
            probe(file, channels)
        return f"{sample.image} is one"
    except Exception as error:
        return f"{sample.image}: {error}"


def check_captions(captions: str, known: Sequence[str] = (WHOLE, LINES, EMBEDDED, TAGS)) -> str:
    if captions not in known:
        guess = did_you_mean(captions, known)
        raise UserError(f"data.captions={captions} is unknown.{guess} There are {', '.join(known)}.")
    return captions


def column_names(columns: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """By column the name that the source's metadata has for it."""
    for key in columns or ():
        if key not in COLUMNS:
            raise UserError(f"data.columns: there is no column '{key}'.{did_you_mean(key, COLUMNS)}")
    if isinstance(columns, Mapping):
        return {key: columns.get(key, key) for key in COLUMNS}
    return {key: key for key in COLUMNS if columns is None or key in columns}


def as_shape(size: int | Sequence[int] | None) -> Shape | None:
    """One side, or (height, width), as both. Raises UserError for other lists."""
    if size is None:
        return None
    if not isinstance(size, int) and len(size) != 2:
        raise UserError(f"data.size={list(size)}: give one number or [height, width].")
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
