"""What metadata.jsonl and metadata.csv say: rows, each about one image."""

import math
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.data.reading.beside import ending, is_image
from ldm.data.reading.layout import inside
from ldm.data.reading.rows import FILE_NAME, Row, is_gap, is_index, number, read_lists, rows_of
from ldm.data.reading.sample import COLUMNS, PATHS, USUAL, Sample, Seen, joined, plural, some, text_of, usual
from ldm.data.reading.split_column import note_splits, split_column
from ldm.data.reading.store import Store

_SHORT, _MANY = 2.5, 3  # words of a tag at most, tags of an image at least, on average
METADATA = ("metadata.jsonl", "metadata.csv")


def described(
    store: Store, under: str, columns: Mapping[str, str], seen: Seen, keep: Callable[[str], bool] = lambda path: True
) -> list[Sample]:
    """The samples inside the folder `under` that metadata describe and `keep` takes, in their order; paths that the
    user doesn't want too, which tell maps from images."""
    found: dict[str, list[Sample]] = {}
    for path in store.entries:
        if not is_metadata(path):
            continue
        folder = posixpath.dirname(path)
        if twin := next((other for other in found if posixpath.dirname(other) == folder), None):
            both = " and ".join(sorted(map(posixpath.basename, (twin, path)), reverse=True))
            raise UserError(f"{store.where}/{folder or '.'} holds both {both}; take one away.")
        found[path] = _File(store, path, columns, seen).samples(lambda image: inside(image, (under,)) and keep(image))
    return _joined(found, seen) if len(found) > 1 else [sample for rows in found.values() for sample in rows]


def is_metadata(path: str) -> bool:
    """Whether a file is called so, in any case."""
    return posixpath.basename(path).lower() in METADATA


def label_of(value: Any) -> str | int | None:
    """A cell's label, without blanks around it; a gap and not-a-number are none. Raises UserError for what is neither a
    number nor a word."""
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        value = None if math.isnan(value) else int(value)
    if isinstance(value, str):
        value = value.strip() or None
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise UserError(f"the label {value!r} is neither a number nor a word")
    return value


class _File:
    """One file of metadata."""

    def __init__(self, store: Store, path: str, columns: Mapping[str, str], seen: Seen):
        self.store, self.path, self.folder, self.seen = store, path, posixpath.dirname(path), seen
        self.where = f"{store.where}/{path}"
        seen.read.add(path)
        self.is_csv, self.gaps = ending(path) == ".csv", dict[str, None]()
        self.rows = rows_of(store, path, seen)
        self.columns = self._known({key: key for key in PATHS} | dict(columns), columns)
        name = self.columns.get("text", "")
        if self.is_csv and (n := read_lists(self.rows, name)):
            seen.aside(f"'{name}' of {path} holds lists in {plural(n, 'row')}: an image's captions, one at each visit")
        self.tags = _are_tags(path, name, [row[name] for row in self.rows if isinstance(row.get(name), list)], seen)
        if not self.rows:
            seen.note(f"{self.where} has no rows: nothing is taken from it")
        if self.is_csv:
            number(self.rows, self.columns.get("label", ""))

    def samples(self, keep: Callable[[str], bool]) -> list[Sample]:
        named = [(self._place(row[FILE_NAME]), row) for row in self.rows]
        entries = self.store.entries
        if named and not any(path in entries for path, _ in named):
            raise UserError(self._misses(named[0][1][FILE_NAME]))
        if self.split:
            note_splits(self.path, self.split, [path for path, _ in named], self.rows, self.seen)
        within = [keep(path) for path, _ in named]
        self.seen.outside |= {
            path: self.path for (path, _), is_in in zip(named, within, strict=True) if not is_in and path not in entries
        }
        found = [self._sample(path, row) for (path, row), is_in in zip(named, within, strict=True) if is_in]
        if self.gaps:
            said = f"{plural(len(self.gaps), 'caption')} of {self.path}, or alternatives among them,"
            kinds = "are no text (null, not-a-number, true, a mapping) and count as missing"
            self.seen.note(f"{said} {kinds}: {some(self.gaps)}")
        return found

    def _known(self, columns: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
        """By column what this file calls it: what the user says, else our name for it, else a usual one."""
        present = {name for row in self.rows for name in row if not is_index(name)} - {FILE_NAME}
        for key, name in columns.items():
            if name != key and name not in present:
                raise UserError(f"data.columns: {self.where} has no column '{name}'.{did_you_mean(name, present)}")
        for key in [key for key in USUAL if columns.get(key) == key]:
            columns[key] = self._called(key, usual(key, present))
        filled = {name for row in self.rows for name, value in row.items() if value not in (None, "", [])}
        self.split = split_column(self.rows, list(columns.values()))
        self._tell_unread((present & filled) - {*columns.values(), self.split}, present & filled, wanted)
        return columns

    def _called(self, key: str, names: Sequence[str]) -> str:
        """The first of `names`, which are in the file, that holds what ours holds."""
        filled = {name: n for name in names if (n := sum(self._holds(key, row.get(name), name) for row in self.rows))}
        if not filled:
            return key
        name = next(iter(filled))
        if key != "text" and name != key and filled[name] < len(self.rows):
            gaps = f"{plural(len(self.rows) - filled[name], 'row')} of {len(self.rows)} without one"
            self.seen.note(f"'{name}' of {self.path} isn't read as {key}s: {gaps}; {option_of(key, name)} reads it")
            return key
        if name != key and key in names:
            self.seen.aside(f"'{key}' of {self.path} is empty in every row: '{name}' is read instead")
        for other in [other for other in filled if other != name]:
            self._tell_hidden(key, name, other)
        return name

    def _tell_hidden(self, key: str, name: str, other: str) -> None:
        """Says in how many rows the column that is read is empty and another of the kind isn't."""
        n = sum(not self._holds(key, row.get(name)) and self._holds(key, row.get(other)) for row in self.rows)
        if n:
            rows = f"'{name}' of {self.path} is empty in {plural(n, 'row')} in which '{other}' isn't"
            self.seen.note(f"{rows}: {option_of(key, other)} reads that column instead")

    def _holds(self, key: str, value: Any, name: str = "") -> bool:
        """Whether there is something; in a column `name` other than ours for a path, a file's that is there."""
        if self.is_csv and is_gap(value, of_label=key == "label"):
            return False
        if key == "label":
            return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
        if key in PATHS:
            return isinstance(value, str) and value != "" and (name == key or self._is_there(value))
        return bool(text_of(value)[0])

    def _is_there(self, name: str) -> bool:
        try:
            return self._place(name) in self.store.entries
        except UserError:  # outside of the data
            return False

    def _tell_unread(self, unread: set[str], present: set[str], wanted: Mapping[str, str]) -> None:
        if not unread:
            return
        if unread < present:
            self.seen.aside(f"columns of {self.path} that aren't read: {', '.join(sorted(unread))}")
        elif "text" in wanted:
            likeliest = self._likeliest(unread)
            hint = f"; {option_of('text', likeliest)} reads captions by that name" if likeliest else ""
            self.seen.note(f"none of the columns of {self.where} is read ({', '.join(sorted(unread))}){hint}")

    def _likeliest(self, names: set[str]) -> str | None:
        """The column that most looks like captions: the longest texts."""

        def length(name: str) -> float:
            texts = [str(joined(text)) for row in self.rows if (text := text_of(row.get(name))[0])]
            return mean(len(text) if _is_prose(text) else 0 for text in texts) if texts else 0

        best = max(sorted(names), key=length)
        return best if length(best) else None

    def _sample(self, image: str, row: Row) -> Sample:
        values: dict[str, Any] = {key: row.get(name) for key, name in self.columns.items()}
        for key in PATHS:
            if self.is_csv and is_gap(values.get(key)) or values.get(key) == "":
                values[key] = None
            if values.get(key) is not None:
                values[key] = self._place(str(values[key]))
        values["text"], whole = text_of(self._gap(values.get("text")))
        values["text"] = joined(values["text"]) if self.tags else values["text"]
        if not whole:
            self.gaps[image] = None
        label = values.get("label")
        try:
            values["label"] = None if self.is_csv and is_gap(label, of_label=True) else label_of(label)
        except UserError as error:
            raise UserError(f"{self.path}, {row[FILE_NAME]}: {error}.") from None
        return Sample(image, **values)

    def _gap(self, text: Any) -> Any:
        """A .csv has no other way to hold a gap than a word."""
        return float("nan") if self.is_csv and is_gap(text) else text

    def _place(self, name: str) -> str:
        """The path in the store: from the file's own folder, or from the data's root if it is only there."""
        own = _inside(self.path, self.folder, self._below_root(name))
        if own in self.store.entries:
            return own
        root = posixpath.normpath(self._below_root(name).replace("\\", "/"))
        ways = [self.store.spelled(path) for path in (own, root, own.strip(), root.strip())]
        return next((path for path in ways if path), own)

    def _below_root(self, name: str) -> str:
        """An absolute path inside of the data, from their root on; others as they are."""
        if not posixpath.isabs(name):
            return name
        below = posixpath.relpath(name, posixpath.abspath(self.store.where))
        return posixpath.relpath(below, self.folder or ".") if not below.startswith("../") else name

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


def _joined(files: Mapping[str, Sequence[Sample]], seen: Seen) -> list[Sample]:
    """The samples of all files. Of an image that several describe, the file nearest to it counts, and the others fill
    what that leaves empty."""
    nearest: dict[str, str] = {}
    for path in sorted(files, key=lambda path: -path.count("/")):
        for sample in files[path]:
            nearest.setdefault(sample.image, path)
    others: dict[str, Sample] = {}
    for path, samples in files.items():
        others |= {s.image: s for s in reversed(samples) if nearest[s.image] != path}
    kept = [sample for path, samples in files.items() for sample in samples if nearest[sample.image] == path]
    if others:
        said = f"{plural(len(others), 'image')} described by several files of metadata"
        seen.note(f"{said} ({some(files)}): the nearest counts, and others fill its gaps: {some(others)}")
    for sample in [sample for sample in kept if sample.image in others]:
        _fill(sample, others[sample.image])
    return kept


def _fill(sample: Sample, other: Sample) -> None:
    for key in COLUMNS:
        if getattr(sample, key) in (None, ""):
            setattr(sample, key, getattr(other, key))


def _are_tags(path: str, name: str, lists: Sequence[list[Any]], seen: Seen) -> bool:
    """Whether the lists of a column are tags that make one caption, by the column's name; others that look it are
    alternatives, and that is said."""
    words = [len(item.split()) for items in lists for item in items if isinstance(item, str)]
    if not words or mean(words) > _SHORT:
        return False
    if re.search("tag|keyword", name, re.IGNORECASE):
        seen.aside(f"lists in '{name}' of {path} are tags: each is one caption, joined by commas")
        return True
    if len(words) >= _MANY * len(lists) and len(lists) > 1:
        said = f"lists of short words in '{name}' of {path} are alternatives: an image gets one of them at each visit"
        seen.note(f"{said}; if they are tags of one caption: data.captions=tags")
    return False


def _is_prose(text: str) -> bool:
    """No path and no number."""
    return bool(re.search(r"[^\W\d_]", text)) and (" " in text or not ("/" in text or "\\" in text))


def _inside(metadata: str, folder: str, name: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == ".." or path[1:2] == ":":
        said = f"{metadata} names '{name}', which lies outside of the data"
        raise UserError(f"{said}: write paths from the metadata's own folder on, and keep images there.")
    return path


def tell_outside(taken: Iterable[Sample], seen: Seen) -> None:
    """Notes the rows whose images are in neither split, and nowhere."""
    images = {sample.image for sample in taken}
    lost: dict[str, list[str]] = {}
    for image, path in seen.outside.items():
        if image not in images:
            lost.setdefault(path, []).append(image)
    for path, missing in lost.items():
        seen.note(f"{plural(len(missing), 'row')} of {path} whose image isn't there: {some(missing)}")
