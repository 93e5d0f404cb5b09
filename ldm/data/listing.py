"""What a folder or a .zip of images holds: samples with their captions, labels, maps, masks and controls."""

import csv
import io
import json
import logging
import os
import posixpath
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from ldm.errors import UserError, did_you_mean
from ldm.images import IMAGES

COLUMNS = ("text", "label", "map", "mask", "control")
PATHS = ("map", "mask", "control")  # columns that name files
METADATA = ("metadata.jsonl", "metadata.csv")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")  # files that may be meant as metadata
MAX_BYTES = 2**30  # beyond this a packed file is taken for a bomb
_log = logging.getLogger("ldm")


@dataclass
class Sample:
    """One image and what belongs to it; paths are inside the store. `caption` is a file that holds the text."""

    image: str
    text: str | list[str] | None = None
    caption: str | None = None
    label: str | int | None = None
    map: str | None = None
    mask: str | None = None
    control: str | None = None


class Store:
    """Files by their path with forward slashes. `entries` are sorted, with what tells a changed file from the old."""

    where: str
    entries: dict[str, tuple[int, int]]

    def read(self, path: str) -> bytes:
        """A file's content."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """A file for reading, seekable."""
        raise NotImplementedError

    def under(self, folder: str) -> list[str]:
        """The paths inside `folder` ("" for all)."""
        return [path for path in self.entries if path.startswith(folder + "/" if folder else "")]

    @cached_property
    def tops(self) -> set[str]:
        """The folders at the top."""
        return {path.split("/")[0] for path in self.entries if "/" in path}


class FolderStore(Store):
    """A folder on disk; links are followed, hidden files left out."""

    def __init__(self, root: Path):
        self.root, self.where = root, str(root)
        found, seen = {}, set()
        for base, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(base)
            if real in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    path = Path(base, name)
                    stat = path.stat() if path.exists() else None  # a dead link is found out when it is read
                    entry = (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)
                    found[path.relative_to(root).as_posix()] = entry
        self.entries = dict(sorted(found.items()))

    def open(self, path: str) -> BinaryIO:
        return open(self.root / path, "rb")


class ZipStore(Store):
    """A .zip, read in place. A single folder around everything is looked through."""

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.root={path} can't be read as a .zip ({error}).") from None
        found = {}
        for info in self.zip.infolist():
            name = info.filename.replace("\\", "/")
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise UserError(f"{path} holds '{info.filename}', a path that leads out of it; don't use this file.")
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            if not info.is_dir() and not hidden:
                found[name] = (info.file_size, info.CRC)
        around = {name.split("/")[0] for name in found}
        self.prefix = f"{around.pop()}/" if len(around) == 1 and all("/" in name for name in found) else ""
        self.entries = {name[len(self.prefix) :]: entry for name, entry in sorted(found.items())}

    def open(self, path: str) -> BinaryIO:
        if self.entries.get(path, (0, 0))[0] > MAX_BYTES:
            raise OSError("the file says that it unpacks to over 1 GB")
        return cast(BinaryIO, self.zip.open(self.prefix + path))


def open_store(root: str | Path) -> Store:
    """The folder or .zip at `root`."""
    path = Path(root).expanduser()
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        return ZipStore(path)
    raise UserError(f"data.root={root} doesn't exist; name a folder or a .zip of images.")


def samples(store: Store, under: str, columns: Mapping[str, str]) -> list[Sample]:
    """The samples inside the folder `under` of the store, in the order of their paths or their metadata.

    `columns` says which of COLUMNS are wanted and what the metadata call them.
    """
    described = list(_from_metadata(store, under, {key: key for key in PATHS} | dict(columns)))
    if not described:
        if unread := [path for path in store.under(under) if path.lower().endswith(TABLES)]:
            _log.warning("%s isn't read: captions and labels come from metadata.jsonl or metadata.csv", unread[0])
        return _from_files(store, under, columns)
    named = {path for sample in described for path in (sample.image, sample.map, sample.mask, sample.control)}
    if unnamed := [path for path in store.under(under) if _is_image(path) and path not in named]:
        _log.warning("%d images aren't in the metadata and are left out, such as %s", len(unnamed), unnamed[0])
    for key in [key for key in PATHS if key not in columns]:
        for sample in described:
            setattr(sample, key, None)
    return described


def _is_image(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in IMAGES


def _from_files(store: Store, under: str, columns: Mapping[str, str]) -> list[Sample]:
    paths = store.under(under)
    found = [Sample(path) for path in paths if _is_image(path)]
    depth = under.count("/") + 1 if under else 0
    folders = [sample.image.split("/")[depth] if sample.image.count("/") > depth else None for sample in found]
    if "label" in columns and None not in folders and len(set(folders)) > 1:
        for sample, folder in zip(found, folders, strict=True):
            sample.label = folder
    if "text" in columns:
        for sample in found:
            caption = posixpath.splitext(sample.image)[0] + ".txt"
            sample.caption = caption if caption in store.entries else None
    return found


def _from_metadata(store: Store, under: str, columns: Mapping[str, str]) -> Iterable[Sample]:
    for path in store.entries:
        folder, name = posixpath.split(path)
        if name not in METADATA:
            continue
        if name == METADATA[1] and posixpath.join(folder, METADATA[0]) in store.entries:
            raise UserError(f"{store.where}/{folder or '.'} holds both {' and '.join(METADATA)}; take one away.")
        rows = list(_csv_rows(store, path, columns.get("label")) if name.endswith(".csv") else _json_rows(store, path))
        _check_columns(f"{store.where}/{path}", rows, columns)
        for row in rows:
            image = _inside(path, folder, row["file_name"])
            if not under or image.startswith(under + "/"):
                yield _sample(path, folder, image, row, columns)


def _sample(path: str, folder: str, image: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Sample:
    values = {key: row.get(name) for key, name in columns.items()}
    for key in PATHS:
        if values.get(key) is not None:
            values[key] = _inside(path, folder, str(values[key]))
    text, label = values.get("text"), values.get("label")
    if isinstance(text, Sequence) and not isinstance(text, str):
        values["text"] = [str(caption) for caption in text] or None
    elif text is not None:
        values["text"] = str(text)
    if label is not None and not isinstance(label, (int, str)):
        raise UserError(f"{path}: the label {label!r} of {row['file_name']} is neither a number nor a word.")
    return Sample(image, **values)


def _json_rows(store: Store, path: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(_text(store, path).split("\n"), 1):  # splitlines() splits inside of captions too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{store.where}/{path}, line {number} isn't JSON ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise UserError(f"{store.where}/{path}, line {number} has no file_name; each row names its image.")
        yield row


def _csv_rows(store: Store, path: str, label: str | None) -> Iterable[dict[str, Any]]:
    """As of JSON: an empty field says nothing, and labels that are all in digits are numbers."""
    rows: list[dict[str, Any]] = []
    for number, row in _csv_table(store, path):
        if not row["file_name"]:
            raise UserError(f"{store.where}/{path}, line {number} has no file_name; each row names its image.")
        rows.append({name: value for name, value in row.items() if value})
    labels = [row[label] for row in rows if label in row]
    if label is not None and all(value.isdecimal() for value in labels):
        for row in rows:
            if label in row:
                row[label] = int(row[label])
    return rows


def _csv_table(store: Store, path: str) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number of the line, fields by column) of each row. Raises UserError for what is no table."""
    where = f"{store.where}/{path}"
    table = csv.reader(io.StringIO(_text(store, path), newline=""), strict=True)
    try:
        names = [name.strip() for name in next(table, [])]
        if "file_name" not in names:
            found = f"its columns are {', '.join(names)}" if names else "it is empty"
            raise UserError(f"{where} has no column file_name, which names each row's image; {found}.")
        if len(set(names)) < len(names):
            raise UserError(f"{where} names a column twice: {', '.join(names)}.")
        for row in table:
            if len(row) > len(names):
                said = f"line {table.line_num} has {len(row)} fields for {len(names)} columns"
                raise UserError(f"{where}, {said}: put captions that hold commas in double quotes.")
            if row:
                yield table.line_num, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise UserError(f"{where}, line {table.line_num} can't be read ({error}).") from None


def _text(store: Store, path: str) -> str:
    try:
        return store.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{store.where}/{path} isn't UTF-8 ({error}); save it so.") from None


def _check_columns(path: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    present = {name for row in rows for name in row} - {"file_name"}
    for key, name in columns.items():
        if name != key and name not in present:
            raise UserError(f"data.columns: {path} has no column '{name}'.{did_you_mean(name, present)}")
    if present and not present & set(columns.values()):
        hint = f"data.columns={{text: {min(present)}}} reads captions by that name"
        _log.warning("none of the columns of %s is read (%s); %s", path, ", ".join(sorted(present)), hint)


def _inside(metadata: str, folder: str, name: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == ".." or path[1:2] == ":":
        raise UserError(f"{metadata} names '{name}', which lies outside of the data; keep images beside it.")
    return path
