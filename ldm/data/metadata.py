"""What metadata.jsonl and metadata.csv say: rows of JSON or of a table, each about one image."""

import csv
import io
import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from ldm.data.beside import is_image
from ldm.data.sample import PATHS, Sample, Seen, plural, some, text_of
from ldm.data.store import Store
from ldm.errors import UserError, did_you_mean

METADATA = ("metadata.jsonl", "metadata.csv")
# What others call our columns, the first that is there; taken where a column of our own name isn't.
USUAL = {
    "text": ("text", "caption", "captions", "prompt", "description", "txt"),
    "label": ("label", "labels", "class", "cls", "category"),
}
_NO_CAPTION = {"nan", "<na>", "none", "null"}  # what Python's and pandas' gaps become in a .csv
Row = Mapping[str, Any]


def described(store: Store, under: str, columns: Mapping[str, str], seen: Seen) -> list[Sample]:
    """The samples inside the folder `under` that metadata describe, in their order; paths that the user doesn't want
    too, which tell maps from images."""
    found: list[Sample] = []
    for path in store.entries:
        folder, name = posixpath.split(path)
        if name not in METADATA:
            continue
        if name == METADATA[1] and posixpath.join(folder, METADATA[0]) in store.entries:
            raise UserError(f"{store.where}/{folder or '.'} holds both {' and '.join(METADATA)}; take one away.")
        found += _File(store, path, columns, seen).samples(under)
    return found


class _File:
    """One file of metadata."""

    def __init__(self, store: Store, path: str, columns: Mapping[str, str], seen: Seen):
        self.store, self.path, self.folder, self.seen = store, path, posixpath.dirname(path), seen
        self.where = f"{store.where}/{path}"
        seen.read.add(path)
        self.is_csv, self.gaps = path.endswith(".csv"), dict[str, None]()
        self.rows = list((_csv_rows if self.is_csv else _json_rows)(self.where, _text(store, path)))
        self.columns = self._known({key: key for key in PATHS} | dict(columns), columns)
        if not self.rows:
            seen.note(f"{self.where} has no rows: nothing is taken from it")
        if self.is_csv:
            _number(self.rows, self.columns.get("label", ""))

    def samples(self, under: str) -> list[Sample]:
        named = [(self._place(row["file_name"]), row) for row in self.rows]
        if named and not any(path in self.store.entries for path, _ in named):
            raise UserError(self._misses(named[0][1]["file_name"]))
        found = [self._sample(path, row) for path, row in named if not under or path.startswith(under + "/")]
        if self.gaps:
            said = f"{plural(len(self.gaps), 'caption')} of {self.path}, or alternatives among them, are no text"
            self.seen.note(f"{said} (null, not-a-number, true, a mapping) and count as missing: {some(self.gaps)}")
        return found

    def _known(self, columns: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
        """By column what this file calls it: what the user says, else our name for it, else a usual one."""
        present = {name for row in self.rows for name in row} - {"file_name"}
        for key, name in columns.items():
            if name != key and name not in present:
                raise UserError(f"data.columns: {self.where} has no column '{name}'.{did_you_mean(name, present)}")
        for key in [key for key in USUAL if columns.get(key) == key and key not in present]:
            if other := next((name for name in USUAL[key] if name in present and self._fits(key, name)), None):
                columns[key] = other
        self._tell_unread(present - set(columns.values()), present, wanted)
        return columns

    def _fits(self, key: str, name: str) -> bool:
        """Whether a column that is only called as ours might be holds what ours holds, in every row."""
        values = [row.get(name) for row in self.rows]
        if key == "label":
            return all(isinstance(value, (str, int)) for value in values)
        return any(isinstance(text_of(value)[0], (str, list)) for value in values)

    def _tell_unread(self, unread: set[str], present: set[str], wanted: Mapping[str, str]) -> None:
        if not unread:
            return
        if unread < present:
            self.seen.aside(f"columns of {self.path} that aren't read: {', '.join(sorted(unread))}")
        elif "text" in wanted:
            names = ", ".join(sorted(unread))
            hint = option_of("text", self._likeliest(unread))
            self.seen.note(f"none of the columns of {self.where} is read ({names}); {hint} reads captions by that name")

    def _likeliest(self, names: set[str]) -> str:
        """The column that most looks like captions: the longest texts."""

        def length(name: str) -> float:
            texts = [row[name] for row in self.rows if isinstance(row.get(name), str)]
            return mean(0 if _is_path(text) else len(text) for text in texts) if texts else -1.0

        return max(sorted(names), key=length)

    def _sample(self, image: str, row: Row) -> Sample:
        values: dict[str, Any] = {key: row.get(name) for key, name in self.columns.items()}
        for key in PATHS:
            if values.get(key) is not None:
                values[key] = self._place(str(values[key]))
        values["text"], whole = text_of(self._gap(values.get("text")))
        if not whole:
            self.gaps[image] = None
        label = values.get("label")
        if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
            raise UserError(f"{self.path}: the label {label!r} of {row['file_name']} is neither a number nor a word.")
        return Sample(image, **values)

    def _gap(self, text: Any) -> Any:
        """A .csv has no other way to hold a gap than a word."""
        is_gap = self.is_csv and isinstance(text, str) and text.strip().lower() in _NO_CAPTION
        return float("nan") if is_gap else text

    def _place(self, name: str) -> str:
        """The path in the store: from the file's own folder, or from the data's root if it is only there."""
        own = _inside(self.path, self.folder, name)
        if own in self.store.entries or not self.folder or posixpath.isabs(name):
            return own
        root = posixpath.normpath(name.replace("\\", "/"))
        if root not in self.store.entries:
            return own
        return root

    def _misses(self, name: str) -> str:
        """What to say where no image is where the file says."""
        stem = posixpath.splitext(posixpath.basename(name.replace("\\", "/")))[0]
        same = [p for p in self.store.entries if posixpath.splitext(posixpath.basename(p))[0] == stem]
        here = next((p for p in same if is_image(p)), None)
        said = f"{self.where} names '{name}', and none of the images that it names is there"
        way = "file_name is a path from the metadata's own folder or from the data's root, with its ending"
        return f"{said}, but {here} is: {way}." if here else f"{said}: {way}."


def option_of(key: str, name: str) -> str:
    """`data.columns='{text: caption}'`, quoted for the shell and for the command line's own grammar."""
    plain = name if re.fullmatch(r"[^\W\d][\w-]*", name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"data.columns={shlex.quote('{' + f'{key}: {plain}' + '}')}"


def _is_path(text: str) -> bool:
    return " " not in text and ("/" in text or "\\" in text)


def _json_rows(where: str, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() splits inside of captions too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}, line {number} isn't JSON ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise UserError(f"{where}, line {number} has no file_name; each row names its image.")
        yield row


def _csv_rows(where: str, text: str) -> Iterable[dict[str, Any]]:
    """As of JSON: an empty field says nothing."""
    for number, row in _csv_table(where, text):
        if not row["file_name"]:
            raise UserError(f"{where}, line {number} has no file_name; each row names its image.")
        yield {name: value for name, value in row.items() if value}


def _number(rows: Sequence[dict[str, Any]], label: str) -> None:
    """Labels of a .csv that are all in digits are numbers."""
    labelled = [row for row in rows if label in row]
    if all(row[label].isdecimal() for row in labelled):
        for row in labelled:
            row[label] = int(row[label])


def _csv_table(where: str, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number of the line, fields by column) of each row. Raises UserError for what is no table."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
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


def _inside(metadata: str, folder: str, name: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == ".." or path[1:2] == ":":
        raise UserError(f"{metadata} names '{name}', which lies outside of the data; keep images beside it.")
    return path
