"""A WebDataset shard: a tar in which files whose names agree up to the first dot belong to one sample."""

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
from ldm.data.reading.findings import Findings
from ldm.data.reading.paths import ending, is_image
from ldm.data.reading.rows import DIGITS
from ldm.data.reading.sample import PATHS, USUAL, Sample, label_of, text_of
from ldm.data.reading.store import MAX_BYTES, Store
from ldm.data.reading.unread import UNREADABLE


class TarStore(Store):
    """The files of an uncompressed tar, read in place. Links and anything else that isn't a file are left out."""

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
            raise UserError(f"{where} can't be read as a tar ({error}): fetch it again, or remove it.") from None
        self.entries = {name: (member.size, int(member.mtime)) for name, member in self._members.items()}

    def open(self, path: str) -> BinaryIO:
        """The archive at a member's first byte; nothing marks its end (see `read`)."""
        file = open(self.path, "rb")  # noqa: SIM115  opened anew for each call, so that threads don't share a position
        file.seek(self._members[path].offset_data)
        return file

    def read(self, path: str) -> bytes:
        """A member's bytes. Raises OSError above 1 GB."""
        size = self._members[path].size
        if size > MAX_BYTES:
            raise OSError("according to its header, it is larger than 1 GB")
        with self.open(path) as file:
            return file.read(size)


@contextlib.contextmanager
def opened(url: str) -> Iterator[TarStore]:
    """Opens the shard at a path or URL (`https:`, `s3:`, `pipe:` and whatever else webdataset opens).

    Remote and compressed shards are first copied into a temporary file, which exists as long as the context.
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


def samples_of(store: TarStore, columns: Mapping[str, str], findings: Findings | None = None) -> list[Sample]:
    """The samples of a shard in its order.

    NAME.jpg, NAME.png and so on is the image; NAME.txt or NAME.caption its caption; NAME.cls its class. NAME.json may
    have the same keys as metadata.jsonl, by the names in `columns` or the usual ones, apart from paths. NAME.map.png,
    NAME.mask.png and NAME.control.png are its map, mask and control image.
    """
    findings = Findings() if findings is None else findings
    groups: dict[str, dict[str, str]] = {}
    for path in store.entries:
        folder, name = posixpath.split(path)
        stem, _, rest = name.partition(".")
        groups.setdefault(f"{folder}/{stem}", {})[rest.lower()] = path
    return [sample for files in groups.values() if (sample := _sample(store, files, columns, findings))]


def _sample(store: TarStore, files: Mapping[str, str], columns: Mapping[str, str], findings: Findings) -> Sample | None:
    images = [path for rest, path in files.items() if is_image(path) and rest.split(".")[0] not in PATHS]
    findings.leave_out(images[1:], "another image of the same name")
    for path in files.values():
        if reason := UNREADABLE.get(ending(path)):
            findings.leave_out([path], f"{ending(path)} files {reason}")
    if not images:
        return None
    text, label = _text_and_label(store, files, columns)
    text, whole = text_of(text)
    if not whole:
        findings.warn("captions that aren't text (null, not-a-number, true, a mapping) count as missing")
    try:
        label = label_of(label)
    except UserError as error:
        raise UserError(f"{store.where}, {images[0]}: {error}.") from None
    values: dict[str, Any] = {"text": text, "label": label}
    for key in PATHS:
        values[key] = next((path for rest, path in files.items() if rest.startswith(f"{key}.")), None)
    caption = files.get("txt", files.get("caption")) if "text" in columns else None
    wanted = {key: value for key, value in values.items() if key in columns}
    return Sample(images[0], caption=caption, **wanted)


def _text_and_label(store: TarStore, files: Mapping[str, str], columns: Mapping[str, str]) -> tuple[Any, Any]:
    """The caption that NAME.json holds, and the class that NAME.cls or NAME.json holds."""
    text = label = None
    if "json" in files:
        row = _json(store, files["json"])
        text = _value(row, "text", columns["text"]) if "text" in columns else None
        label = _value(row, "label", columns["label"]) if "label" in columns else None
    if "cls" in files:
        word = store.read(files["cls"]).decode("utf-8", "replace").strip()
        is_number = word.isdecimal() and len(word) <= DIGITS
        label = int(word) if is_number else word or None
    return text, label


def _value(row: Mapping[str, Any], key: str, name: str) -> Any:
    """A row's value under the name that the user gives, or under the usual names if it is our own."""
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
        raise UserError(
            "reading shards from URLs needs the package webdataset: pip install 'ldm[webdataset]'."
        ) from None
    try:
        return gopen(url)
    except Exception as error:  # every scheme raises its own errors
        raise UserError(f"{url} can't be opened ({error}).") from None


def _decompressed(path: Path) -> Any:
    import bz2
    import gzip
    import lzma

    kinds: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with path.open("rb") as file:
        start = file.read(2)
    if start not in kinds:
        raise UserError(f"{path} isn't a tar: fetch it again, or remove it.")
    return kinds[start](path, "rb")
