"""Captions in NAME.json beside an image, under the keys that downloaders, image boards and tools use."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import evenly_spaced
from ldm.data.reading.sample import USUAL, Text, join_tags, normalized, text_of
from ldm.data.reading.store import Store

OURS = "text"  # the key of the caption unless the user gives another
_TAGS = ("tag_string", "tags", "tag_string_general")  # as image boards have them
_AROUND = ("meta", "metadata", "parameters")  # keys of inner mappings that may hold a prompt
# Other keys that may hold captions, which are named where they aren't read.
_MORE = ("title", "content", "alt", "alttext", "keywords", "tagstring", "tags", "label", "labels", "class", "category")
_LOOKED_AT = 16


def row_of(where: str, text: str) -> Mapping[str, Any]:
    """The mapping in a file, empty for other JSON. Raises UserError for a text that isn't JSON."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON ({error}): fetch it again, or remove it.") from None
    return row if isinstance(row, Mapping) else {}


def caption_in(row: Mapping[str, Any], name: str = OURS) -> Text:
    """The caption of a row: under `name` if the user gives it, otherwise under the first of the usual keys, or its
    tags."""
    if name != OURS:
        return _text(row.get(name))
    within = [row.get(around) for around in _AROUND]
    rows = [row, *(inner for inner in within if isinstance(inner, Mapping))]
    return next((text for inner in rows if (text := _usual(inner))), None)


def hold_captions(store: Store, paths: Sequence[str], name: str, findings: Findings) -> bool:
    """Whether any of the files holds a caption. Other texts in them are added to `findings`."""
    rows = [row for path in evenly_spaced(paths, _LOOKED_AT) if (row := _peek(store, path))]
    taken = [row for row in rows if caption_in(row, name)]
    others = _others(rows, name)
    if taken and others:
        findings.remark(f"in {plural(len(paths), 'file')} NAME.json, only the caption is read, not {', '.join(others)}")
    elif rows and not taken:
        findings.mark_unread(paths, "JSON beside images without a caption under a usual key")
        message = (
            f"{plural(len(paths), '.json file')} beside images ({examples(paths)}) hold no caption under a usual key"
        )
        keys = f"but {', '.join(others)}" if others else f"their keys: {examples(list(rows[0]), 6)}"
        name = others[0] if others else "KEY"
        findings.warn(f"{message}, {keys}: data.columns='{{text: {name}}}' reads '{name}' as the caption")
    return bool(taken)


def _peek(store: Store, path: str) -> Mapping[str, Any]:
    """The file's row; empty if it can't be read, which is reported when all files are read."""
    try:
        return row_of("", store.text(path))
    except UserError:
        return {}


def _key(row: Mapping[str, Any]) -> str | None:
    """The key of the caption, in any spelling, or of the tags."""
    known = {normalized(key): key for key in reversed(list(row))}
    keys = [known[normalized(name)] for name in (*USUAL["text"], *_TAGS) if normalized(name) in known]
    return next((key for key in keys if _text(row[key])), None)


def _usual(row: Mapping[str, Any]) -> Text:
    key = _key(row)
    text = None if key is None else _text(row[key])
    return join_tags(text) if key and normalized(key) in map(normalized, _TAGS) else text


def _text(value: Any) -> Text:
    """A value as a caption, or as a list of alternatives. Tags in groups are one caption."""
    if isinstance(value, Mapping):  # e621 groups tags by their kind
        value = [tag for tags in value.values() if isinstance(tags, list) for tag in tags]
        return join_tags(text_of(value)[0])
    return text_of(value)[0] or None


def _others(rows: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Other keys that may hold captions, the most frequent first."""
    known = {normalized(key) for key in (*USUAL["text"], *_MORE)}
    counts: Counter[str] = Counter()
    for row in rows:
        taken = name if name != OURS else _key(row)
        counts.update(key for key in row if key != taken and normalized(key) in known and _text(row[key]))
    return [key for key, _ in counts.most_common(6)]
