"""Captions in NAME.json beside an image: by the names that downloaders, image boards and tools give them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldm.common.errors import UserError
from ldm.data.reading.sample import USUAL, Seen, Text, joined, plain, plural, some, text_of
from ldm.data.reading.store import Store

OURS = "text"  # the column's name unless the user says another
_TAGS = ("tag_string", "tags", "tag_string_general")  # as image boards have them
_AROUND = ("meta", "metadata", "parameters")  # mappings within that may hold a prompt
# What may be meant as well, and is named where it isn't read.
_MORE = ("title", "content", "alt", "alttext", "keywords", "tagstring", "tags", "label", "labels", "class", "category")
_LOOKED_AT = 16


def row_of(where: str, text: str) -> Mapping[str, Any]:
    """The mapping in a file; empty for other JSON. Raises UserError for what is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON ({error}): fetch it again, or remove it.") from None
    return row if isinstance(row, Mapping) else {}


def caption_in(row: Mapping[str, Any], name: str = OURS) -> Text:
    """The caption in a row under `name`, or else under the first of the usual names, or its tags."""
    if name != OURS:
        return _text(row.get(name))
    within = [row.get(around) for around in _AROUND]
    rows = [row, *(inner for inner in within if isinstance(inner, Mapping))]
    return next((text for inner in rows if (text := _usual(inner))), None)


def hold_captions(store: Store, paths: Sequence[str], name: str, seen: Seen) -> bool:
    """Whether some of the files hold a caption. `seen` is told what else a few of them hold."""
    rows = [row for path in paths[:: -(-len(paths) // _LOOKED_AT)] if (row := _peek(store, path))]
    taken = [row for row in rows if caption_in(row, name)]
    others = _others(rows, name)
    if taken and others:
        seen.aside(f"of {plural(len(paths), 'file')} NAME.json the caption is read, and not {', '.join(others)}")
    elif rows and not taken:
        seen.pass_over(paths, "JSON beside images without a caption by the usual names")
        said = f"{plural(len(paths), '.json file')} beside images ({some(paths)}) hold no caption by the usual names"
        keys = f"but {', '.join(others)}" if others else f"their keys: {some(list(rows[0]), 6)}"
        name = others[0] if others else "KEY"
        seen.note(f"{said}, {keys}: data.columns='{{text: {name}}}' reads one as the caption")
    return bool(taken)


def _peek(store: Store, path: str) -> Mapping[str, Any]:
    """Nothing where the file can't be read, which is told when all are."""
    try:
        return row_of("", store.text(path))
    except UserError:
        return {}


def _key(row: Mapping[str, Any]) -> str | None:
    """The key of the caption, in any spelling, or of the tags."""
    known = {plain(key): key for key in reversed(list(row))}
    keys = [known[plain(name)] for name in (*USUAL["text"], *_TAGS) if plain(name) in known]
    return next((key for key in keys if _text(row[key])), None)


def _usual(row: Mapping[str, Any]) -> Text:
    key = _key(row)
    text = None if key is None else _text(row[key])
    return joined(text) if key and plain(key) in map(plain, _TAGS) else text


def _text(value: Any) -> Text:
    """A caption or alternatives; tags that lie in groups are one caption."""
    if isinstance(value, Mapping):  # e621's tags by their kind
        value = [tag for tags in value.values() if isinstance(tags, list) for tag in tags]
        return joined(text_of(value)[0])
    return text_of(value)[0] or None


def _others(rows: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Keys of what may be meant as well, the most frequent first."""
    known = {plain(key) for key in (*USUAL["text"], *_MORE)}
    counts: Counter[str] = Counter()
    for row in rows:
        taken = name if name != OURS else _key(row)
        counts.update(key for key in row if key != taken and plain(key) in known and _text(row[key]))
    return [key for key, _ in counts.most_common(6)]
