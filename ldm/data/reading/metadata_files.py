"""Samples as metadata.jsonl and metadata.csv describe them, a row for each image."""

import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import Tails, ending, inside, is_image
from ldm.data.reading.rows import FILE_NAME, Row, is_gap, is_index, number_labels, read_lists, rows_of
from ldm.data.reading.sample import PATHS, USUAL, Sample, join_tags, label_of, merged, text_of, usual_names
from ldm.data.reading.split_column import read_groups, read_splits, split_column
from ldm.data.reading.store import Store

_TAG_WORDS, _TAGS = 2.5, 3  # averages: words of a tag at most, tags of an image at least
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
TABLES = (".csv", ".tsv")


def read_metadata(
    store: Store,
    under: str,
    columns: Mapping[str, str],
    findings: Findings,
    keep: Callable[[str], bool] = lambda path: True,
) -> list[Sample]:
    """The samples inside the folder `under` that metadata describe and `keep` accepts, in the order of the metadata.

    They have all their paths, even of columns that the user doesn't want, which tells maps from images.
    Raises UserError.
    """
    found: dict[str, list[Sample]] = {}
    for path in store.entries:
        if not is_metadata(path):
            continue
        folder = posixpath.dirname(path)
        if twin := next((other for other in found if posixpath.dirname(other) == folder), None):
            both = " and ".join(sorted(map(posixpath.basename, (twin, path)), reverse=True))
            raise UserError(f"{store.where}/{folder or '.'} holds both {both}; remove one of them.")
        found[path] = _File(store, path, columns, findings).samples(
            lambda image: inside(image, (under,)) and keep(image)
        )
    return merged(found, findings) if len(found) > 1 else [sample for rows in found.values() for sample in rows]


def is_metadata(path: str) -> bool:
    """Whether a file has the name of metadata, regardless of case."""
    return posixpath.basename(path).lower() in METADATA


class _File:
    """One file of metadata: its rows, and which of its columns are read as what."""

    def __init__(self, store: Store, path: str, columns: Mapping[str, str], findings: Findings):
        self.store, self.path, self.folder, self.findings = store, path, posixpath.dirname(path), findings
        self.where = f"{store.where}/{path}"
        findings.read.add(path)
        self.is_csv, self.gaps = ending(path) in TABLES, dict[str, None]()
        self.rows = rows_of(store, path, findings)
        self.tails: Tails | None = None
        self.tails = self._tails()
        self.columns = self._known({key: key for key in PATHS} | dict(columns), columns)
        name = self.columns.get("text", "")  # of the column of captions
        if self.is_csv and (n := read_lists(self.rows, name)):
            findings.remark(
                f"'{name}' of {path} holds lists in {plural(n, 'row')}: alternative captions, one at each visit"
            )
        self.tags = _are_tags(path, name, [row[name] for row in self.rows if isinstance(row.get(name), list)], findings)
        if not self.rows:
            findings.warn(f"{self.where} has no rows, so nothing is read from it")
        if self.is_csv:
            number_labels(self.rows, self.columns.get("label", ""))

    def samples(self, keep: Callable[[str], bool]) -> list[Sample]:
        """One sample for each row whose path `keep` accepts. Raises UserError where no row names an image that is
        there."""
        named = [(self._place(row[FILE_NAME]), row) for row in self.rows]
        entries = self.store.entries
        if named and not any(path in entries for path, _ in named):
            raise UserError(self._message_no_image(named[0][1][FILE_NAME]))
        if self.split:
            images = [path for path, _ in named]
            read_splits(self.path, self.split, images=images, rows=self.rows, findings=self.findings)
        read_groups([path for path, _ in named], self.rows, is_csv=self.is_csv, findings=self.findings)
        within = [keep(path) for path, _ in named]
        self.findings.outside |= {
            path: self.path for (path, _), is_in in zip(named, within, strict=True) if not is_in and path not in entries
        }
        found = [self._sample(path, row) for (path, row), is_in in zip(named, within, strict=True) if is_in]
        if self.gaps:
            message = f"{plural(len(self.gaps), 'caption')} of {self.path}, or alternatives in them, aren't text"
            kinds = "(null, not-a-number, true, a mapping) and count as missing"
            self.findings.warn(f"{message} {kinds}: {examples(self.gaps)}")
        return found

    def _tails(self) -> Tails | None:
        """The `Tails` that finds all images by the last parts of their names, if no name is that of an image as it
        stands; else None.
        """
        names = [row[FILE_NAME] for row in self.rows]
        if not names or any(map(self._is_there, names)):
            return None
        tails = Tails(self.store.entries)
        found = [tails.find(name) for name in names]
        if None in found:
            return None
        message = f"{self.path} gives other paths for its images, which are all found by the last parts of their paths"
        self.findings.remark(f"{message} ({examples([names[0]])} is {examples([str(found[0])])})")
        return tails

    def _known(self, columns: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
        """The name that each column has in this file: the one that the user gives, else ours, else a usual one."""
        present = {name for row in self.rows for name in row if not is_index(name)} - {FILE_NAME}
        for key, name in columns.items():
            if name != key and name not in present:
                raise UserError(f"data.columns: {self.where} has no column '{name}'.{did_you_mean(name, present)}")
        for key in [key for key in USUAL if columns.get(key) == key]:
            columns[key] = self._name_of(key, usual_names(key, present))
        filled = {name for row in self.rows for name, value in row.items() if value not in (None, "", [])}
        self.split = split_column(self.rows, list(columns.values()))
        used = {*columns.values(), self.split, self.findings.group_column}
        self._report_unread((present & filled) - used, present & filled, wanted)
        return columns

    def _name_of(self, key: str, names: Sequence[str]) -> str:
        """The first of `names`, columns of this file, that holds values of our column `key`; `key` if none does."""
        filled = {name: n for name in names if (n := sum(self._holds(key, row.get(name), name) for row in self.rows))}
        if not filled:
            return key
        name = next(iter(filled))
        if key != "text" and name != key and filled[name] < len(self.rows):
            empty = f"{plural(len(self.rows) - filled[name], 'row')} of {len(self.rows)} without one"
            self.findings.warn(
                f"'{name}' of {self.path} isn't read as {key}s: {empty}; {option_of(key, name)} reads it"
            )
            return key
        if name != key and key in names:
            self.findings.remark(f"'{key}' of {self.path} is empty in every row: '{name}' is read instead")
        for other in [other for other in filled if other != name]:
            self._report_other_column(key, name, other)
        return name

    def _report_other_column(self, key: str, name: str, other: str) -> None:
        """Warns if rows are empty in the column that is read but not in another column of the same kind."""
        n = sum(not self._holds(key, row.get(name)) and self._holds(key, row.get(other)) for row in self.rows)
        if n:
            rows = f"'{name}' of {self.path} is empty in {plural(n, 'row')} where '{other}' isn't"
            self.findings.warn(f"{rows}: {option_of(key, other)} reads that column instead")

    def _holds(self, key: str, value: Any, name: str = "") -> bool:
        """Whether a cell holds a value of the column `key`. A file must exist, unless the column's `name` is ours."""
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
        except UserError:  # a path that leads out of the data
            return False

    def _report_unread(self, unread: set[str], present: set[str], wanted: Mapping[str, str]) -> None:
        if not unread:
            return
        if unread < present:
            self.findings.remark(f"columns of {self.path} that aren't read: {', '.join(sorted(unread))}")
        elif "text" in wanted:
            likeliest = self._likeliest(unread)
            hint = f"; {option_of('text', likeliest)} reads that one as captions" if likeliest else ""
            self.findings.warn(f"no column of {self.where} is read ({', '.join(sorted(unread))}){hint}")

    def _likeliest(self, names: set[str]) -> str | None:
        """The column that looks most like captions: the one with the longest texts."""

        def length(name: str) -> float:
            """The mean number of letters in a column's prose; 0 for a column of lists or numbers."""
            texts = [str(join_tags(text)) for row in self.rows if (text := text_of(row.get(name))[0])]
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
        values["text"] = join_tags(values["text"]) if self.tags else values["text"]
        if not whole:
            self.gaps[image] = None
        label = values.get("label")
        try:
            values["label"] = None if self.is_csv and is_gap(label, of_label=True) else label_of(label)
        except UserError as error:
            raise UserError(f"{self.path}, {row[FILE_NAME]}: {error}.") from None
        return Sample(image, **values)

    def _gap(self, text: Any) -> Any:
        """A caption; or not-a-number for a word that stands for a gap, since a .csv has no other way to write one."""
        return float("nan") if self.is_csv and is_gap(text) else text

    def _place(self, name: str) -> str:
        """The path in the store, read from the metadata's own folder, or from the data's root if the file exists only
        there.
        """
        if self.tails and (path := self.tails.find(name)):
            return path
        own = _inside(self.path, self.folder, self._below_root(name))
        if own in self.store.entries:
            return own
        root = posixpath.normpath(self._below_root(name).replace("\\", "/"))
        candidates = [self.store.spelled(path) for path in (own, root, own.strip(), root.strip())]
        return next((path for path in candidates if path), own)

    def _below_root(self, name: str) -> str:
        """An absolute path inside the data as a path from the metadata's folder; other paths as they are."""
        if not posixpath.isabs(name):
            return name
        below = posixpath.relpath(name, posixpath.abspath(self.store.where))
        return posixpath.relpath(below, self.folder or ".") if not below.startswith("../") else name

    def _message_no_image(self, name: str) -> str:
        """The message where none of the images that the file names exists."""
        stem = posixpath.splitext(posixpath.basename(name.replace("\\", "/")))[0]
        same = [p for p in self.store.entries if posixpath.splitext(posixpath.basename(p))[0] == stem]
        here = next((p for p in same if is_image(p)), None)
        message = f"{self.where} names '{name}', and none of the images that it names exists"
        if here:
            message = f"{message}, but {here} does"
        return (
            f"{message}: file_name is a path from the metadata's own folder or from the data's root, with its ending."
        )


def option_of(key: str, name: str) -> str:
    """`data.columns='{text: caption}'`, quoted for the shell and for the command line's own grammar."""
    if not re.fullmatch(r"[^\W\d][\w-]*", name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        name = f'"{escaped}"'
    return f"data.columns={shlex.quote('{' + f'{key}: {name}' + '}')}"


def _are_tags(path: str, name: str, lists: Sequence[list[Any]], findings: Findings) -> bool:
    """Whether the lists of a column are tags that make one caption, by the column's name. Warns of other lists that
    look like tags but are read as alternatives."""
    words = [len(item.split()) for items in lists for item in items if isinstance(item, str)]
    if not words or mean(words) > _TAG_WORDS:
        return False
    if re.search("tag|keyword", name, re.IGNORECASE):
        findings.remark(f"lists in '{name}' of {path} are tags: each list is joined by commas into one caption")
        return True
    if len(words) >= _TAGS * len(lists) and len(lists) > 1:
        message = f"lists of short texts in '{name}' of {path} are read as alternatives, one at each visit"
        findings.warn(f"{message}; if they are tags of one caption, use data.captions=tags")
    return False


def _is_prose(text: str) -> bool:
    """Whether a text is neither a path nor a number."""
    return bool(re.search(r"[^\W\d_]", text)) and (" " in text or not ("/" in text or "\\" in text))


def _inside(metadata: str, folder: str, name: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == ".." or path[1:2] == ":":
        message = f"{metadata} names '{name}', which lies outside the data"
        raise UserError(f"{message}: write paths from the metadata's own folder, and keep images there.")
    return path


def report_missing_images(taken: Iterable[Sample], findings: Findings) -> None:
    """Warns of rows whose images don't exist in either split."""
    images = {sample.image for sample in taken}
    lost: dict[str, list[str]] = {}
    for image, path in findings.outside.items():
        if image not in images:
            lost.setdefault(path, []).append(image)
    for path, missing in lost.items():
        findings.warn(f"{plural(len(missing), 'row')} of {path} whose image doesn't exist: {examples(missing)}")
