"""WebDataset shards: tars on disk or by URL, decoded shard by shard into a table."""

import glob
import io
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import register
from ldm.data.folders.usual import tell_alike
from ldm.data.preparing.decode import Decoder, Tally, class_names
from ldm.data.preparing.digests import images_of, save_digests, tell_shared
from ldm.data.preparing.stored import LINES, TAGS, WHOLE, as_shape, check_captions, column_names
from ldm.data.preparing.summary import FILE, Facts, facts_of, tell
from ldm.data.reading.sample import Seen, plural
from ldm.data.reading.tar import listed, opened
from ldm.data.storage.pieces import share
from ldm.data.storage.table import FRAME, Column, Table, cached, hash_of, new_array
from ldm.images import READER, Preprocess, probe

_VERSION = "shards-3"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@register
class Shards:
    """WebDataset shards: `root` is a folder of tars, one tar, a pattern (`train-{0000..0099}.tar`, `train-*.tar`) or a
    list of them. URLs (`https:`, `s3:`, `pipe:`) need the `webdataset` extra.

    Shards are streamed once, each decoded into a piece of the cache; the pieces are then joined to a table, so that
    training has what it has with any other source: an order from (seed, epoch), exact resume, and ranks that draw what
    one process would. Processes that start together share the shards, and an interrupted start goes on with the shards
    that are left. `val_root` are the shards to validate on; otherwise a fixed random `val_share`.

    What a shard may hold: see `listed` in ldm/data/reading/tar.py. A caption's file is one caption, or with
    `captions=lines` one a line; `captions=tags` joins lists to one caption. Channels, bits and, without `size`, size
    are the first image's; images of other sizes are then left out and counted. The other options are those of
    `Folder`.
    """

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
    ):
        if not 0 < val_share < 1:
            raise UserError(f"data.val_share={val_share} must lie between 0 and 1.")
        self.root, self.val_root, self.val_share, self.max_bad_share = root, val_root, val_share, max_bad_share
        self.size, self.captions = as_shape(size), check_captions(captions, (WHOLE, LINES, TAGS))
        self.channels, self.bits, self.columns = channels, bits, column_names(columns)
        self._made: tuple[Table, Table] | None = None
        height, width = self.size or (1, 1)  # a wrong option is told before any shard is read
        Preprocess(3 if channels is None else channels, height, width, 8 if bits is None else bits, resize)
        resize = resize if size else "none"
        self.options: dict[str, Any] = {"resize": resize, "background": background, "low": low, "high": high}

    @property
    def name(self) -> str:
        first = self.root if isinstance(self.root, str) else self.root[0]
        path = Path(first)
        stem = re.split(r"[{*]", path.name.removesuffix(".gz").removesuffix(".tar"))[0]
        return re.sub(r"[^\w.-]", "", stem).strip("-_.") or path.parent.name

    @property
    def default_condition(self) -> str | None:
        columns = self._made[0].columns if self._made else self._decoder.has
        return "text" if "text" in columns else "label" if "label" in columns else None

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, decoded once and cached under `cache`."""
        train, val = (_stamped(urls) for urls in (self._urls, self._val_urls))
        about = [READER, self.size, self.channels, self.bits, self.options, self.columns, self.max_bad_share]
        key = hash_of(_VERSION, list(train), list(val), None if val else self.val_share, about, self.captions)
        home, pieces = Path(cache) / key, Path(cache) / f".{key}-pieces"
        if not home.is_dir():
            pieces.mkdir(parents=True, exist_ok=True)
            urls = train | val
            share(pieces, list(urls), lambda name: self._decode(urls[name], pieces / name, name), home.is_dir)

        def paths(names: Iterable[str]) -> list[Path]:
            return [pieces / name for name in names]

        def join(folder: Path) -> tuple[Table, Table]:
            return self._join(paths(train), paths(val), folder, key)

        try:
            self._made = cached(Path(cache), key, join)
        except FileNotFoundError:  # another process has joined the pieces meanwhile, and removed them
            self._made = cached(Path(cache), key, join)
        shutil.rmtree(pieces, ignore_errors=True)
        tell(Facts.load(home), home / FILE)
        return self._made

    @cached_property
    def _urls(self) -> list[str]:
        """The shards to train on: none of those that are validated on."""
        found, held = expand(self.root), {_place(url) for url in self._val_urls}
        left = [url for url in found if _place(url) not in held]
        if not left:
            raise UserError("data.val_root has every shard of data.root: name other shards to validate on, or none.")
        return left

    @cached_property
    def _val_urls(self) -> list[str]:
        return expand(self.val_root) if self.val_root else []

    @cached_property
    def _decoder(self) -> Decoder:
        """What the first shard says of all: its columns, and the first image's size, channels and bits."""
        with opened(self._urls[0]) as store:
            rows = listed(store, self.columns)
            if not rows:
                raise UserError(f"{store.where} holds no images.")
            height, width, channels, bits = probe(io.BytesIO(store.read(rows[0].image)), self.channels)
            size = self.size or (height, width)
            preprocess = Preprocess(self.channels or channels, *size, self.bits or bits, **self.options)
            return Decoder.of((store, rows), (store, []), preprocess, captions=self.captions)

    def _decode(self, url: str, folder: Path, key: str) -> None:
        """One shard as a table of its own, whose labels are as the shard has them."""
        decoder = self._decoder
        unlabelled = replace(decoder, has=tuple(column for column in decoder.has if column != "label"))
        shutil.rmtree(folder, ignore_errors=True)
        with opened(url) as store:
            rows = listed(store, self.columns, seen := Seen())
            tally = Tally(len(rows), 1.0)  # the whole counts, when the pieces are joined
            table = unlabelled.table((store, rows), folder, key, tally)
            save_digests(store, list(table.names), folder)
        labels = {row.image: row.label for row in rows}
        if "label" in decoder.has:
            table.columns["label"] = [labels[name] for name in table.names]
        table.names = [f"{Path(url).name}/{name}" for name in table.names]
        tally.bad = {f"{url}/{path}": reason for path, reason in tally.bad.items()}
        seen.left_out = {f"{url}/{path}": reason for path, reason in seen.left_out.items()}
        facts_of(seen, url, len(table), 0, "", tally, len(table) - len(tally.no_caption), ()).save(folder)
        table.save(folder)

    def _join(self, train: Sequence[Path], val: Sequence[Path], folder: Path, key: str) -> tuple[Table, Table]:
        """The pieces of both splits as two tables."""
        paths = [*train, *val]
        tables = [Table.load(path) for path in paths]
        tally, seen = Tally(0, self.max_bad_share), Seen()
        for path in paths:
            _add(Facts.load(path), tally, seen)
        tally.total = sum(map(len, tables)) + len(tally.bad)
        tally.check()
        if held := len(expand(self.root)) - len(self._urls):
            verb, which = ("isn't", "it") if held == 1 else ("aren't", "them")
            seen.note(f"{plural(held, 'shard')} of data.root {verb} trained on, as data.val_root has {which}")
        ends = np.cumsum([0, *map(len, tables)])
        if val:
            rows, val_rows = np.arange(ends[len(train)]), np.arange(ends[len(train)], ends[-1])
            tell_shared(train, val, seen)
        else:
            image = images_of(paths, seen)  # (N,)
            order = permutation(0, 0, len(np.unique(image)))
            is_held = np.isin(image, order[: max(1, round(self.val_share * len(order)))])
            rows, val_rows = np.flatnonzero(~is_held), np.flatnonzero(is_held)
        if not len(rows) or not len(val_rows):
            raise UserError(f"{self.root} holds {len(rows) + len(val_rows)} images; training and validation need one.")
        chosen = [[r[(a <= r) & (r < b)] - a for a, b in pairwise(ends)] for r in (rows, val_rows)]
        made = [joined(tables, of, folder / n, f"{key}-{n}") for of, n in zip(chosen, ("train", "val"), strict=True)]
        _name_classes(*made)
        tell_alike(made[0].classes, seen)
        split = f"data.val_root={self.val_root}" if val else f"a fixed random {self.val_share:g} of all"
        captioned = sum(map(len, made)) - len(tally.no_caption) if "text" in made[0].columns else 0
        source = self.root if isinstance(self.root, str) else ", ".join(self.root)
        facts_of(seen, source, len(made[0]), len(made[1]), split, tally, captioned, made[0].classes).save(folder)
        return made[0], made[1]


def _add(piece: Facts, tally: Tally, seen: Seen) -> None:
    """Adds what one shard told to what all tell."""
    tally.bad |= piece.bad
    tally.notes.update(piece.counts)
    tally.no_caption += piece.no_caption
    tally.several_lines += piece.several_lines
    seen.left_out |= piece.left_out
    for note in piece.notes:
        seen.note(note)


def joined(tables: Sequence[Table], rows: Sequence[np.ndarray], folder: Path, key: str) -> Table:
    """The given rows of each table as one new table, its arrays in `folder`."""
    n = sum(map(len, rows))

    def column(parts: Sequence[Column], name: str) -> Column:
        if not isinstance(parts[0], np.ndarray):
            return [part[i] for part, some in zip(parts, rows, strict=True) for i in some.tolist()]
        array = new_array(folder / f"{name}.npy", parts[0].dtype.type, (n, *parts[0].shape[1:]))
        at = 0
        for part, some in zip(parts, rows, strict=True):
            for few in np.array_split(some, -(-len(some) // 1024) or 1):
                array[at : at + len(few)] = np.asarray(part)[few]
                at += len(few)
        return array

    columns = {name: column([table.columns[name] for table in tables], name) for name in tables[0].columns}
    names = [table.names[i] for table, some in zip(tables, rows, strict=True) for i in some.tolist()]
    images = np.asanyarray(column([table.images for table in tables], "images"))
    frames = None
    if all(table.frames is not None for table in tables):
        frames = np.asanyarray(column([f for table in tables if (f := table.each_frame) is not None], FRAME))
    return Table(images, columns, tables[0].preprocess, key, names, frames=frames)


def expand(pattern: str | Sequence[str]) -> list[str]:
    """The shards that a folder, a pattern or a list of them names, in order."""
    if not isinstance(pattern, str):
        return [shard for part in pattern for shard in expand(part)]
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        numbers = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
        return [s for number in numbers for s in expand(f"{pattern[: found.start()]}{number}{pattern[found.end() :]}")]
    path = Path(pattern).expanduser()
    if path.is_dir():
        shards = sorted(str(p) for kind in ("*.tar", "*.tar.gz", "*.tgz") for p in path.glob(kind))
    else:
        shards = sorted(glob.glob(str(path))) if any(mark in pattern for mark in "*?[") else [pattern]
    if not shards:
        raise UserError(f"data.root={pattern}: there are no shards (.tar); name a folder, a file or a pattern.")
    if missing := [s for s in shards if not _is_url(s) and not Path(s).expanduser().is_file()]:
        raise UserError(f"data.root: there is no shard at {missing[0]}.")
    return shards


def _is_url(shard: str) -> bool:
    return re.match(r"[a-z0-9]+:", shard) is not None


def _place(shard: str) -> str:
    """What is the same for two names of one shard."""
    return shard if _is_url(shard) else str(Path(shard).expanduser().resolve())


def _stamped(urls: Sequence[str]) -> dict[str, str]:
    """By a name that tells changed shards from the old: the shards."""
    found = {}
    for url in urls:
        stat = None if _is_url(url) else Path(url).expanduser().stat()
        found[hash_of(_VERSION, url, stat and [stat.st_size, stat.st_mtime_ns])] = url
    return found


def _name_classes(train: Table, val: Table) -> None:
    """Turns labels as the shards have them into numbers of classes, and names the ids of maps."""
    tables = (train, val)
    if "label" in train.columns:
        missing = [
            name for t in tables for name, label in zip(t.names, t.columns["label"], strict=True) if label is None
        ]
        if missing:
            raise UserError(f"{missing[0]} has no label while others have; give it one, or take it out.")
        classes = class_names(set(train.columns["label"]) | set(val.columns["label"]))
        for table in tables:
            table.classes = classes
            numbers = {name: i for i, name in enumerate(classes)}
            table.columns["label"] = np.array([numbers[str(label)] for label in table.columns["label"]], np.int64)
    if "map" in train.columns:
        highest = max(int(np.max(table.columns["map"])) for table in tables)
        for table in tables:
            table.map_classes = tuple(str(i) for i in range(highest + 1))
