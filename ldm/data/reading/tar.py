"""A WebDataset shard: a tar whose members belong together where their names agree up to the first dot."""

import contextlib
import json
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ldm.common.errors import UserError
from ldm.data.reading.beside import UNREADABLE, ending, is_image
from ldm.data.reading.metadata_files import label_of
from ldm.data.reading.rows import DIGITS
from ldm.data.reading.sample import COLUMNS, PATHS, USUAL, Sample, Seen, text_of
from ldm.data.reading.store import MAX_BYTES, Store


class TarStore(Store):
    """The files of an uncompressed tar, read where they lie; links and whatever else isn't a file are left out."""

    def __init__(self, path: Path, where: str):
        self.path, self.where = path, where
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(path, "r:*") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if member.isreg() and not any(step.startswith((".", "__MACOSX")) for step in name.split("/")):
                        self._members[name] = member
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{where} can't be read as a tar ({error}): fetch it again, or take it out.") from None
        self.entries = {name: (member.size, int(member.mtime)) for name, member in self._members.items()}

    def open(self, path: str) -> BinaryIO:
        file = open(self.path, "rb")  # noqa: SIM115  one a call, so that threads don't share a place in it
        file.seek(self._members[path].offset_data)
        return file

    def read(self, path: str) -> bytes:
        size = self._members[path].size
        if size > MAX_BYTES:
            raise OSError("the file says that it is over 1 GB")
        with self.open(path) as file:
            return file.read(size)


@contextlib.contextmanager
def opened(url: str) -> Iterator[TarStore]:
    """The shard at a path or URL (`https:`, `s3:`, `pipe:` and what else webdataset opens), as long as it is needed.

    What is elsewhere, or compressed, is copied into a temporary file first.
    """
    path = Path(url).expanduser()
    if path.is_file() and tarfile.is_tarfile(path) and not _is_compressed(path):
        yield TarStore(path, url)
        return
    with tempfile.TemporaryDirectory(prefix="ldm-shard-") as folder:
        copy = Path(folder) / "shard.tar"
        with copy.open("wb") as target, _stream(url) as source:
            shutil.copyfileobj(source, target, 2**20)
        yield TarStore(copy, url)


def listed(store: TarStore, columns: Mapping[str, str], seen: Seen | None = None) -> list[Sample]:
    """The samples of a shard in its order.

    NAME.jpg, .png and so on is the image; NAME.txt or NAME.caption its caption; NAME.cls its class; NAME.json may have
    all that metadata.jsonl may have, by the names in `columns` or the usual ones; NAME.map.png, NAME.mask.png and
    NAME.control.png are its map, mask and control.
    """
    seen = Seen() if seen is None else seen
    groups: dict[str, dict[str, str]] = {}
    for path in store.entries:
        folder, name = posixpath.split(path)
        stem, _, rest = name.partition(".")
        groups.setdefault(f"{folder}/{stem}", {})[rest.lower()] = path
    return [sample for files in groups.values() if (sample := _sample(store, files, columns, seen))]


def _sample(store: TarStore, files: Mapping[str, str], columns: Mapping[str, str], seen: Seen) -> Sample | None:
    images = [p for e, p in files.items() if is_image(p) and e.split(".")[0] not in PATHS]
    seen.leave(images[1:], "another image of the same name")
    for path in files.values():
        if reason := UNREADABLE.get(ending(path)):
            seen.leave([path], f"{ending(path)} files {reason}")
    if not images:
        return None
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    if "json" in files:
        row = _json(store, files["json"])
        found |= {key: _value(row, key, name) for key, name in columns.items() if key not in PATHS}
    if "cls" in files:
        word = store.read(files["cls"]).decode("utf-8", "replace").strip()
        found["label"] = int(word) if word.isdecimal() and len(word) <= DIGITS else word or None
    for key in PATHS:
        found[key] = next((p for e, p in files.items() if e.split(".")[0] == key and "." in e), None)
    found["text"], whole = text_of(found["text"])
    if not whole:
        seen.note("captions that are no text (null, not-a-number, true, a mapping) count as missing")
    try:
        found["label"] = label_of(found["label"])
    except UserError as error:
        raise UserError(f"{store.where}, {images[0]}: {error}.") from None
    kept: dict[str, Any] = {key: value if key in columns else None for key, value in found.items()}
    caption = files.get("txt", files.get("caption")) if "text" in columns else None
    return Sample(images[0], caption=caption, **kept)


def _value(row: Mapping[str, Any], key: str, name: str) -> Any:
    """A row's value by the name that the user says, or by the usual ones where that is ours."""
    names = USUAL.get(key, (key,)) if name == key else (name,)
    filled = (row[name] for name in names if row.get(name) not in (None, "", []))
    return next(filled, next((row[name] for name in names if name in row), None))


def _json(store: TarStore, path: str) -> Mapping[str, Any]:
    try:
        row = json.loads(store.read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{store.where}: {path} isn't JSON ({error}).") from None
    return row if isinstance(row, Mapping) else {}


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7")


def _stream(url: str) -> Any:
    path = Path(url).expanduser()
    if path.is_file():
        return _decompressed(path)
    if ":" not in url:
        raise UserError(f"data.root: there is no shard at {url}.")
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise UserError("shards by URL need the package webdataset: pip install 'ldm[webdataset]'.") from None
    try:
        return gopen(url)
    except Exception as error:  # of every scheme its own
        raise UserError(f"{url} can't be opened ({error}).") from None


def _decompressed(path: Path) -> Any:
    import bz2
    import gzip
    import lzma

    kinds: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with path.open("rb") as file:
        start = file.read(2)
    if start not in kinds:
        raise UserError(f"{path} is no tar: fetch it again, or take it out.")
    return kinds[start](path, "rb")
