"""What sources of encoded images share: from splits of listed samples to decoded tables, with buckets or without."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.common.errors import UserError
from ldm.common.ranks import rank
from ldm.data.augmenting.options import Variants
from ldm.data.augmenting.tables import with_variants
from ldm.data.folders.common_names import report_similar_classes
from ldm.data.preparing.crops import cropped_table
from ldm.data.preparing.decode import Decoder, Split, Tally
from ldm.data.preparing.heads import Head, Heads, common_channels, common_size, read_heads
from ldm.data.preparing.options import WHOLE, as_shape, check_captions, check_val_share, metadata_names
from ldm.data.preparing.pixel_warnings import pixel_warnings
from ldm.data.preparing.summary import FILE, Facts, by_reason, facts_of, report
from ldm.data.reading.captions.json_files import OURS
from ldm.data.reading.findings import Findings
from ldm.data.storage.buckets import Buckets, Shape, assign, shapes
from ldm.data.storage.cached import cached_parts
from ldm.data.storage.table import Table
from ldm.images import READER, SURE, Preprocess


class _Part(NamedTuple):
    """What one pair of tables is made of; `suffix` follows `train` and `val` in their names."""

    suffix: str
    preprocess: Preprocess
    train: Split
    val: Split


class EncodedSource:
    """What sources of encoded images have in common. Subclasses give the splits and a key that names their content.

    `reports` is whether `tables` prints the summary.
    """

    reports = True

    def __init__(
        self,
        *,
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
        variants: Variants | None = None,
    ):
        self.size, self.val_share = as_shape(size), check_val_share(val_share)
        self.channels, self.bits, self.max_bad_share = channels, bits, max_bad_share
        self.columns, self.options = metadata_names(columns), dict(options)
        self.bucket_step, self.bucket_least = bucket_step, bucket_least
        self.captions, self.findings = check_captions(captions), Findings()
        self.variants = variants or Variants()
        if self.variants.zoom > 1 and options.get("resize") == "none":
            raise UserError(f"data.zoom={self.variants.zoom:g} resizes: it can't be combined with data.resize=none.")
        # refuses wrong options before any file is read
        height, width = self.size or (1, 1)
        others = {name: value for name, value in options.items() if name != "background"}
        Preprocess(3 if channels is None else channels, height, width, bits=8 if bits is None else bits, **others)

    @property
    def default_condition(self) -> str | None:
        """The condition that a model takes unless the user gives one: captions, else labels."""
        train = self._splits[0][1]
        if any(sample.text is not None or sample.caption is not None for sample in train):
            return "text"
        return "label" if any(sample.label is not None for sample in train) else None

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, decoded once and cached under `cache`. Prints the summary."""
        key = self._key()
        made = cached_parts(Path(cache), key, lambda folder: self._decode(self._parts(), key, folder))
        pair = _in_buckets(made, key) if self.bucket_step else (made["train"], made["val"])
        if self.channels is None and pair[0].preprocess.channels > SURE:
            _ = self._heads  # refuses arrays with ambiguous axes, also if an earlier version has decoded them
        home = Path(cache) / key
        self._summarize(home, pair[0].preprocess)
        return with_variants(pair, self.variants, cache, self._crop)

    def _crop(self, table: Table, version: int, folder: Path) -> Table:
        """Version `version` of the images of a training table, each a random part of its image."""
        train, val = self._splits
        decoder = self._decoder(train, val, table.preprocess)
        zoom = self.variants.zoom
        return cropped_table(decoder, [train], table, version=version, zoom=zoom, folder=folder / table.key)

    def _decoder(self, train: Split, val: Split, preprocess: Preprocess) -> Decoder:
        return Decoder.of(
            train,
            val,
            preprocess,
            classes=self._classes(),
            captions=self.captions,
            text=self.columns.get("text", OURS),
        )

    def facts(self, cache: Path) -> Facts:
        """What was found when the tables under `cache` were made."""
        return Facts.load(Path(cache) / self._key())

    def content(self, name: str) -> bytes:
        """The file of the image `name` of a table. Raises KeyError if no split has it."""
        for store, samples in self._splits:
            if any(sample.image == name for sample in samples):
                return store.read(name)
        raise KeyError(name)

    def _summarize(self, home: Path, preprocess: Preprocess) -> None:
        """Prints what was found when the tables were made, together with what the listing finds now: another version
        may have made the tables, and its sentences may differ."""
        facts = Facts.load(home)
        report_similar_classes(facts.classes, self.findings)
        doubts = facts.doubts
        if doubts is None:
            store, samples = self._splits[0]
            doubts = pixel_warnings(store, samples, preprocess, self.channels)
        now = replace(
            facts,
            doubts=doubts,
            left_out=self.findings.left_out,
            unread=by_reason(self.findings.unread),
            notes=self.findings.warnings,
            asides=self.findings.remarks,
            class_note=self.findings.class_note,
        )
        if now != facts and rank() == 0:
            now.save(home)
        if self.reports:
            report(now, home / FILE)

    @property
    def _splits(self) -> tuple[Split, Split]:
        """(store, samples) of training and validation."""
        raise NotImplementedError

    def _key(self) -> str:
        """A name for content and preprocessing."""
        raise NotImplementedError

    def _classes(self) -> Sequence[str]:
        """The names of the labels 0, 1, ... if the source knows them."""
        return ()

    def _shaping_options(self) -> list[Any]:
        """The options on which the content of the tables depends; they are part of the key."""
        options: list[Any] = [READER, self.size, self.channels, self.bits, self.options, self.columns]
        options += [self.val_share, self.max_bad_share]
        return [*options, self.bucket_step, self.bucket_least] if self.bucket_step else options

    def _parts(self) -> list[_Part]:
        """What each pair of tables is made of: one pair, or with buckets one for each shape."""
        if self.bucket_step:
            return self._bucket_parts(self.bucket_step)
        heads = [] if self.size and self.channels and self.bits else list(self._heads.values())
        preprocess = self._preprocess(self.size or common_size(self._heads), heads)
        train, val = self._splits
        return [_Part(suffix="", preprocess=preprocess, train=train, val=val)]

    def _bucket_parts(self, step: int) -> list[_Part]:
        """A part for each shape that training has; validation images go to the nearest of these."""
        if not self.size or self.size[0] != self.size[1]:
            raise UserError("data.buckets=true needs data.size, the side of a square with the area of all shapes.")
        known, heads = shapes(self.size[0], step), list(self._heads.values())
        train, val = self._splits
        of_train = assign(self._sizes(train), known, self.bucket_least)
        used = np.unique(of_train)
        of_val = used[assign(self._sizes(val), [known[i] for i in used])]
        return [
            _Part(
                suffix=f"-{known[i][0]}x{known[i][1]}",
                preprocess=self._preprocess(known[i], heads),
                train=_chosen(train, of_train == i),
                val=_chosen(val, of_val == i),
            )
            for i in used.tolist()
        ]

    def _sizes(self, split: Split) -> list[Shape]:
        """Height and width of each image. One that can't be read counts as square here, and as bad when it is
        decoded."""
        store, samples = split
        heads = [self._heads.get((store.where, sample.image)) for sample in samples]
        return [(head[0], head[1]) if head else (1, 1) for head in heads]

    def _decode(self, parts: Iterable[_Part], key: str, folder: Path) -> dict[str, Table]:
        """The tables `train` and `val` of each part, with its suffix."""
        train, val = self._splits
        tally = Tally(len(train[1]) + len(val[1]), self.max_bad_share)
        tables = {}
        for part in parts:
            decoder = self._decoder(train, val, part.preprocess)
            for split, samples, purpose in (("train", part.train, "training"), ("val", part.val, "validation")):
                if samples[1]:
                    name = split + part.suffix
                    tables[name] = decoder.table(
                        samples, folder / name, key=f"{key}-{name}", tally=tally, purpose=f"for {purpose}"
                    )
        tally.check()
        self._facts(tables, tally).save(folder)
        _name_map_classes(tables.values())
        return tables

    def _facts(self, tables: Mapping[str, Table], tally: Tally) -> Facts:
        training = sum(len(table) for name, table in tables.items() if name.startswith("train"))
        validation = sum(len(table) for name, table in tables.items() if name.startswith("val"))
        first = next(iter(tables.values()))
        return facts_of(
            self.findings,
            tally,
            source=self._splits[0][0].where,
            training=training,
            validation=validation,
            split=self._split_described(),
            captions=training + validation - len(tally.no_caption) if "text" in first.columns else 0,
            classes=first.classes,
        )

    def _split_described(self) -> str:
        """How validation images were chosen, in words."""
        return f"a fixed random {self.val_share:g} of all"

    def _preprocess(self, size: Shape, heads: Sequence[Head]) -> Preprocess:
        """Preprocessing with the channels and bits that the user gives, or those of the images."""
        height, width = size
        bits = self.bits or max(bits for *_, bits in heads)
        return Preprocess(self.channels or common_channels(heads), height, width, bits=bits, **self.options)

    @cached_property
    def _heads(self) -> Heads:
        return read_heads(self._splits, self.channels)


def _chosen(split: Split, is_chosen: np.ndarray) -> Split:
    """The samples of a split for which `is_chosen` (N,) holds."""
    store, samples = split
    return store, [samples[i] for i in np.flatnonzero(is_chosen)]


def _name_map_classes(tables: Iterable[Table]) -> None:
    """If all tables have maps, names the maps' ids by their numbers."""
    tables = list(tables)
    if not all("map" in table.columns for table in tables):
        return
    highest = max(int(np.max(table.columns["map"])) for table in tables)
    for table in tables:
        table.map_classes = tuple(str(i) for i in range(highest + 1))


def _in_buckets(tables: Mapping[str, Table], key: str) -> tuple[Table, Table]:
    """The tables of both splits, each with all shapes as buckets."""
    train, val = (
        Buckets.of([table for name, table in tables.items() if name.startswith(split)], f"{key}-{split}")
        for split in ("train", "val")
    )
    counts = {"x".join(map(str, table.images.shape[2:])): len(table) for table in train.buckets}
    print("buckets: " + ", ".join(f"{n} images of {shape}" for shape, n in counts.items()), flush=True)
    return train, val
