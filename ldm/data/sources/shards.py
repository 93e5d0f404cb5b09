"""WebDataset shards: tars on disk or by URL, decoded shard by shard into a table."""

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import register
from ldm.data.augmenting.options import Variants
from ldm.data.augmenting.tables import with_variants
from ldm.data.folders.common_names import report_similar_classes
from ldm.data.preparing.decode import Decoder, Tally
from ldm.data.preparing.labels import class_names
from ldm.data.preparing.options import LINES, TAGS, WHOLE, as_shape, check_captions, check_val_share, metadata_names
from ldm.data.preparing.shard_duplicates import images_of, report_shared, save_digests
from ldm.data.preparing.summary import FILE, Facts, facts_of, report
from ldm.data.reading.findings import Findings, plural
from ldm.data.reading.tar import opened, samples_of
from ldm.data.sources.shard_names import expand, identity, is_url
from ldm.data.storage.cached import cached
from ldm.data.storage.joining import join_tables
from ldm.data.storage.pieces import share
from ldm.data.storage.table import Table, hash_of
from ldm.images import READER, Preprocess, probe

_VERSION = "shards-3"


@register
class Shards:
    """WebDataset shards: `root` is a folder of tars, one tar, a pattern (`train-{0000..0099}.tar`, `train-*.tar`) or a
    list of them. URLs (`https:`, `s3:`, `pipe:`) need the `webdataset` extra.

    Shards are read once, each decoded into a piece of the cache. The pieces are then joined to one table, so that
    training has what every source gives: an order from (seed, epoch), exact resuming, and ranks that draw what one
    process would. Processes that start together share the shards; an interrupted start continues with the remaining
    shards. What a shard may hold: see `samples_of` in ldm/data/reading/tar.py. Options:

    - `root`: the shards.
    - `val_root`: the shards to validate on, which aren't trained on; without it a fixed random `val_share` of the
      images.
    - `size`, `channels`, `bits`: by default those of the first image. Without `size`, images of other sizes are left
      out and counted.
    - `captions`: `whole` (default): a caption file is one caption; `lines`: each of its lines is an alternative;
      `tags`: a list is one caption, joined by commas.
    - `columns`, `resize`, `background`, `low`, `high`, `max_bad_share`, `flip`, `variants`, `augment`: as for
      `Folder`.
    """

    reports = True  # whether `tables` prints the summary

    def __init__(
        self,
        root: str | Sequence[str],
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        bits: int | None = None,
        val_share: float = 0.05,
        val_root: str | Sequence[str] | None = None,
        resize: str = "cover",
        columns: Sequence[str] | Mapping[str, str] | None = None,
        max_bad_share: float = 0.01,
        background: Sequence[float] | None = None,
        low: float | None = None,
        high: float | None = None,
        captions: str = WHOLE,
        flip: str = "none",
        variants: int = 1,
        augment: float = 0.0,
    ):
        self.root, self.val_root, self.max_bad_share = root, val_root, max_bad_share
        self.val_share, self.size = check_val_share(val_share), as_shape(size)
        self.captions = check_captions(captions, (WHOLE, LINES, TAGS))
        self.variants = Variants(flip, variants, augment=augment)
        self.channels, self.bits, self.columns = channels, bits, metadata_names(columns)
        self._made: tuple[Table, Table] | None = None
        height, width = self.size or (1, 1)  # refuses wrong options before any shard is read
        Preprocess(3 if channels is None else channels, height, width, bits=8 if bits is None else bits, resize=resize)
        resize = resize if size else "none"
        self.options: dict[str, Any] = {"resize": resize, "background": background, "low": low, "high": high}

    @property
    def name(self) -> str:
        """The name of the first shard without numbers and endings, or of its folder."""
        first = self.root if isinstance(self.root, str) else self.root[0]
        path = Path(first)
        stem = re.split(r"[{*]", path.name.removesuffix(".gz").removesuffix(".tar"))[0]
        return re.sub(r"[^\w.-]", "", stem).strip("-_.") or path.parent.name

    @property
    def default_condition(self) -> str | None:
        """The condition that a model takes unless the user gives one: captions, else labels."""
        columns = self._made[0].columns if self._made else self._decoder.has
        return "text" if "text" in columns else "label" if "label" in columns else None

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, decoded once and cached under `cache`. Prints the summary."""
        train, val = _by_key(self._urls), _by_key(self._val_urls)
        key = self._key()
        home, pieces = Path(cache) / key, Path(cache) / f".{key}-pieces"
        if not home.is_dir():
            pieces.mkdir(parents=True, exist_ok=True)
            urls = train | val
            share(pieces, list(urls), lambda name: self._decode(urls[name], pieces / name, name), home.is_dir)
        train_pieces, val_pieces = [pieces / name for name in train], [pieces / name for name in val]

        def join(folder: Path) -> tuple[Table, Table]:
            """Joins the tables of the shards into two in `folder`, for training and validation."""
            return self._join(train_pieces, val_pieces, folder, key)

        try:
            self._made = cached(Path(cache), key, join)
        except FileNotFoundError:  # another process has joined the pieces in the meantime, and removed them
            self._made = cached(Path(cache), key, join)
        shutil.rmtree(pieces, ignore_errors=True)
        if self.reports:
            report(Facts.load(home), home / FILE)
        return with_variants(self._made, self.variants, cache)

    def facts(self, cache: Path) -> Facts:
        """What was found when the tables under `cache` were made."""
        return Facts.load(Path(cache) / self._key())

    def _key(self) -> str:
        train, val = _by_key(self._urls), _by_key(self._val_urls)
        options = [READER, self.size, self.channels, self.bits, self.options, self.columns, self.max_bad_share]
        return hash_of(_VERSION, list(train), list(val), None if val else self.val_share, options, self.captions)

    @cached_property
    def _urls(self) -> list[str]:
        """The shards to train on, without those that are validated on. Raises UserError if none is left."""
        validated = {identity(url) for url in self._val_urls}
        left = [url for url in expand(self.root) if identity(url) not in validated]
        if not left:
            raise UserError("data.val_root has every shard of data.root: give other shards to validate on, or none.")
        return left

    @cached_property
    def _val_urls(self) -> list[str]:
        return expand(self.val_root) if self.val_root else []

    @cached_property
    def _decoder(self) -> Decoder:
        """The decoder for all shards: the first shard gives columns, and its first image size, channels and bits."""
        with opened(self._urls[0]) as store:
            rows = samples_of(store, self.columns)
            if not rows:
                raise UserError(f"{store.where} holds no images.")
            height, width, channels, bits = probe(io.BytesIO(store.read(rows[0].image)), self.channels)
            if self.size:
                height, width = self.size
            preprocess = Preprocess(self.channels or channels, height, width, bits=self.bits or bits, **self.options)
            return Decoder.of((store, rows), (store, []), preprocess, captions=self.captions)

    def _decode(self, url: str, folder: Path, key: str) -> None:
        """Writes one shard as a table of its own, with labels as they are in the shard."""
        decoder = self._decoder
        unlabelled = replace(decoder, has=tuple(column for column in decoder.has if column != "label"))
        shutil.rmtree(folder, ignore_errors=True)
        findings = Findings()
        with opened(url) as store:
            rows = samples_of(store, self.columns, findings)
            tally = Tally(len(rows), 1.0)  # the share of bad images is checked when the pieces are joined
            table = unlabelled.table((store, rows), folder, key=key, tally=tally)
            save_digests(store, list(table.names), folder)
        if "label" in decoder.has:
            labels = {row.image: row.label for row in rows}
            table.columns["label"] = [labels[name] for name in table.names]
        table.names = [f"{Path(url).name}/{name}" for name in table.names]
        tally.bad = {f"{url}/{path}": reason for path, reason in tally.bad.items()}
        findings.left_out = {f"{url}/{path}": reason for path, reason in findings.left_out.items()}
        facts = facts_of(
            findings,
            tally,
            source=url,
            training=len(table),
            validation=0,
            split="",
            captions=len(table) - len(tally.no_caption),
            classes=(),
        )
        facts.save(folder)
        table.save(folder)

    def _join(self, train: Sequence[Path], val: Sequence[Path], folder: Path, key: str) -> tuple[Table, Table]:
        """The pieces of both splits as two tables. Raises UserError if one would be empty."""
        pieces = [*train, *val]
        tables = [Table.load(path) for path in pieces]
        tally, findings = Tally(0, self.max_bad_share), Findings()
        for path in pieces:
            _add(Facts.load(path), tally, findings)
        tally.total = sum(map(len, tables)) + len(tally.bad)
        tally.check()
        self._report_validated(findings)
        rows, val_rows = self._split_rows(tables, train, val, findings)
        if not len(rows) or not len(val_rows):
            raise UserError(f"{self.root} holds {len(rows) + len(val_rows)} images; training and validation need one.")
        made = (
            join_tables(tables, _rows_by_table(tables, rows), folder / "train", f"{key}-train"),
            join_tables(tables, _rows_by_table(tables, val_rows), folder / "val", f"{key}-val"),
        )
        _name_classes(*made)
        report_similar_classes(made[0].classes, findings)
        facts = facts_of(
            findings,
            tally,
            source=self.root if isinstance(self.root, str) else ", ".join(self.root),
            training=len(made[0]),
            validation=len(made[1]),
            split=f"data.val_root={self.val_root}" if val else f"a fixed random {self.val_share:g} of all",
            captions=sum(map(len, made)) - len(tally.no_caption) if "text" in made[0].columns else 0,
            classes=made[0].classes,
        )
        facts.save(folder)
        return made

    def _split_rows(
        self, tables: Sequence[Table], train: Sequence[Path], val: Sequence[Path], findings: Findings
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of training and of validation, counted over all tables."""
        if val:
            report_shared(train, val, findings)
            n_train, n = sum(map(len, tables[: len(train)])), sum(map(len, tables))
            return np.arange(n_train), np.arange(n_train, n)
        image = images_of(train, findings)  # (N,)
        order = permutation(0, 0, len(np.unique(image)))
        is_held = np.isin(image, order[: max(1, round(self.val_share * len(order)))])
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)

    def _report_validated(self, findings: Findings) -> None:
        """Warns of shards of data.root that aren't trained on."""
        if n := len(expand(self.root)) - len(self._urls):
            verb, them = ("isn't", "it") if n == 1 else ("aren't", "them")
            findings.warn(f"{plural(n, 'shard')} of data.root {verb} trained on, since data.val_root has {them}")


def _add(piece: Facts, tally: Tally, findings: Findings) -> None:
    """Adds the facts of one shard to those of all."""
    tally.bad |= piece.bad
    tally.notes.update(piece.counts)
    tally.no_caption += piece.no_caption
    tally.several_lines += piece.several_lines
    findings.left_out |= piece.left_out
    for warning in piece.notes:
        findings.warn(warning)


def _rows_by_table(tables: Sequence[Table], rows: np.ndarray) -> list[np.ndarray]:
    """Splits `rows`, which count over all tables, into the rows of each table."""
    ends = np.cumsum([0, *map(len, tables)])
    return [rows[(start <= rows) & (rows < end)] - start for start, end in pairwise(ends)]


def _by_key(urls: Sequence[str]) -> dict[str, str]:
    """The shards by a key that changes with a file."""
    found = {}
    for url in urls:
        stat = None if is_url(url) else Path(url).expanduser().stat()
        found[hash_of(_VERSION, url, stat and [stat.st_size, stat.st_mtime_ns])] = url
    return found


def _name_classes(train: Table, val: Table) -> None:
    """Turns the shards' labels into class numbers, and names the ids of maps. Raises UserError for a missing label."""
    tables = (train, val)
    if "label" in train.columns:
        for table in tables:
            for name, label in zip(table.names, table.columns["label"], strict=True):
                if label is None:
                    raise UserError(f"{name} has no label, but other images have one; label it, or remove it.")
        classes = class_names(set(train.columns["label"]) | set(val.columns["label"]))
        for table in tables:
            table.classes = classes
            numbers = {name: i for i, name in enumerate(classes)}
            table.columns["label"] = np.array([numbers[str(label)] for label in table.columns["label"]], np.int64)
    if "map" in train.columns:
        highest = max(int(np.max(table.columns["map"])) for table in tables)
        for table in tables:
            table.map_classes = tuple(str(i) for i in range(highest + 1))
