"""Rows of metadata as files hold them: JSON with an object on each line, or a table with commas, semicolons or tabs."""

import ast
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import ending
from ldm.data.reading.sample import normalized
from ldm.data.reading.store import Store

FILE_NAME = "file_name"
# Other names for this column; the first that exists is used.
_ALIASES = ("filename", "file", "image", "image_path", "image_file", "img", "path", "filepath", "file_path")
_NO_NUMBER = {"nan", "<na>"}
_GAPS = {*_NO_NUMBER, "none", "null"}  # what Python's and pandas' gaps become in a .csv
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ROW = '{"file_name": "a.png", "text": "a cat"}'
_NAMELESS = "{} has no column file_name, which names each row's image; {}."
DIGITS = 18  # a label with more digits isn't read as a number
_LIST = re.compile(r"""\[\s*['"].*['"]\s*,?\s*\]""", re.DOTALL)
_NO_COMMA = re.compile(r"""['"]\s+['"]""")  # numpy's arrays, which Python would join to one word
Row = dict[str, Any]


def rows_of(store: Store, path: str, findings: Findings) -> list[Row]:
    """The rows of the file, each with its image under `file_name`. Empty fields of a table aren't in its rows.

    Raises UserError for a file that isn't of this form.
    """
    where, text = f"{store.where}/{path}", store.text(path)
    rows = list(_table(where, path, text, findings) if ending(path) in (".csv", ".tsv") else _objects(where, text))
    _name_images(where, path, rows, findings)
    return [row for _, row in rows]


def number_labels(rows: list[Row], label: str) -> None:
    """Turns the labels of a table into numbers if all consist of digits, without leading zeros: 007 isn't 7."""
    for row in rows:
        if label in row and not row[label].strip():
            del row[label]
    labelled = [row for row in rows if label in row and not is_gap(row[label], of_label=True)]
    if all(_is_number(row[label].strip()) for row in labelled):
        for row in labelled:
            row[label] = int(row[label])


def read_lists(rows: list[Row], text: str) -> int:
    """Turns texts of the form ['a cat', 'a pet'], as pandas writes lists, into lists; returns how many there are."""
    count = 0
    for row in rows:
        if (found := _list_in(row.get(text))) is not None:
            row[text] = found
            count += 1
    return count


def _list_in(text: Any) -> list[str] | None:
    if not (isinstance(text, str) and _LIST.fullmatch(text.strip())):
        return None
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    is_list = isinstance(found, list) and all(isinstance(part, str) for part in found)
    return found if is_list and not _NO_COMMA.search(text) else None


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) <= DIGITS and str(int(word)) == word


def is_gap(word: Any, of_label: bool = False) -> bool:
    """Whether a table's field is a word for an empty field. In labels, `none` and `null` may be names."""
    return isinstance(word, str) and word.strip().lower() in (_NO_NUMBER if of_label else _GAPS)


def is_index(column: str) -> bool:
    """Whether a column is the numbering of rows that pandas writes."""
    return not column or column.startswith("Unnamed: ")


def _name_images(where: str, path: str, rows: list[tuple[int, Row]], findings: Findings) -> None:
    """Puts each row's image under `file_name`. Raises UserError for a row without one."""
    if rows and not any(FILE_NAME in row for _, row in rows):
        first = rows[0][1]
        if other := image_column([name for name, value in first.items() if isinstance(value, str)]):
            findings.remark(f"{path} names its images in '{other}'")
            for _, row in rows:
                row[FILE_NAME] = row.pop(other, None)
        else:
            raise UserError(_NAMELESS.format(where, f"it has {', '.join(first)}"))
    for line, row in rows:
        if not isinstance(row.get(FILE_NAME), str) or not row[FILE_NAME].strip():
            raise UserError(f"{where}, line {line} has no file_name; each row names its image.")


def image_column(names: Sequence[str]) -> str | None:
    """The column with the first of the usual names for an image's file, regardless of case."""
    return next((name for alias in _ALIASES for name in names if normalized(name) == normalized(alias)), None)


# JSON ----------------------------------------------------------------------------------------------------------------


def _objects(where: str, text: str) -> list[tuple[int, Row]]:
    """Yields (line number, object) for each object, even if objects are spread over several lines, or form one list."""
    try:
        found = list(_by_line(text))
    except UserError as error:
        found = list(_by_object(text))
        if not found:
            raise UserError(f"{where}, {error}.") from None
    return found


def _by_line(text: str) -> Iterator[tuple[int, Any]]:
    for line, row in enumerate(text.split("\n"), 1):  # splitlines() splits inside of captions too
        row = row.strip().rstrip(",")
        if row:
            try:
                value = json.loads(row)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {line} isn't JSON ({error})") from None
            if not isinstance(value, dict):
                raise UserError(f"line {line} isn't an object: a row is like {_ROW}")
            yield line, value


def _by_object(text: str) -> Iterator[tuple[int, Any]]:
    """Yields the objects of a text that holds them one after the other or in a list; nothing for any other text."""
    body = text.strip()
    if body.startswith("[") and body.endswith("]"):  # a list, perhaps with a comma after its last item
        text = text.replace("[", " ", 1)
        text = text[: text.rindex("]")]
    decoder, at, found = json.JSONDecoder(), 0, []
    try:
        while rest := text[at:].lstrip(" \t\r\n,"):
            at = len(text) - len(rest)
            value, end = decoder.raw_decode(text, at)
            line = text.count("\n", 0, at) + 1
            found.append((line, value))
            at = end
    except (ValueError, RecursionError):
        return
    yield from found if all(isinstance(row, dict) for _, row in found) else ()


# Tables --------------------------------------------------------------------------------------------------------------


def _table(where: str, path: str, text: str, findings: Findings) -> list[tuple[int, Row]]:
    """Yields (line number, fields by column) for each row. Raises UserError for a text that isn't a table."""
    try:
        names, rows = _split(where, text, spaced=False)
    except UserError:
        if not re.search(r'[,;\t|] +"', text):
            raise
        names, rows = _split(where, text, spaced=True)  # spaces before quotes
    if short := [str(line) for line, row in rows if len(row) < len(names)]:
        message = f"{plural(len(short), 'line')} of {path} with fewer fields than columns"
        findings.warn(f"{message} (line {examples(short)}): the missing ones count as empty")
    return [(line, _fields(names, row)) for line, row in rows]


def _split(where: str, text: str, spaced: bool) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header's names, and (line number, fields) of each row that isn't empty."""
    mark, before = _delimiter(text)
    options: dict[str, Any] = {"delimiter": mark, "skipinitialspace": spaced, "strict": True}
    table = csv.reader(io.StringIO(text[before:], newline=""), **options)
    rows: list[tuple[int, list[str]]] = []
    first = 1 if before else 0
    try:
        names = [name.strip() for name in next(table, [])]
        _check_header(where, names)
        for row in table:
            line = table.line_num + first
            if len(row) > len(names):
                message = f"line {line} has {plural(len(row), 'field')} for {plural(len(names), 'column')}"
                raise UserError(
                    f"{where}, {message}: put captions that contain {_MARKS.get(mark, repr(mark))} in double quotes."
                )
            if any(field.strip() for field in row):
                rows.append((line, row))
    except csv.Error as error:
        raise UserError(f"{where}, line {table.line_num + first} can't be read ({error}).") from None
    return names, rows


def _fields(names: list[str], row: list[str]) -> Row:
    return {name: value for name, value in zip(names, row, strict=False) if value or name == FILE_NAME}


def _delimiter(text: str) -> tuple[str, int]:
    """The character between fields, and where the header begins: after Excel's own line `sep=;`, if there is one.

    It is a comma unless the header has none: in half of the world Excel writes semicolons, and sometimes tabs.
    """
    if declared := re.match(r"sep=(.)\r?\n", text):
        return declared[1], declared.end()
    header = text.split("\n", 1)[0]
    return next((mark for mark in _MARKS if mark in header), ","), 0


def _check_header(where: str, names: list[str]) -> None:
    if not names:
        raise UserError(_NAMELESS.format(where, "it is empty"))
    if FILE_NAME not in names and not image_column(names):
        raise UserError(_NAMELESS.format(where, f"its columns are {', '.join(names)}"))
    if len(set(names)) < len(names):
        raise UserError(f"{where} names a column twice: {', '.join(names)}.")
