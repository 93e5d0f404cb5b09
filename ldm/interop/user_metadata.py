"""What web UIs keep of a user beside a file, and what is in none: A1111's `NAME.json`, the civitai helper's
`NAME.civitai.info`. Nothing of it is applied by itself; what it says is told in one line."""

import logging
from pathlib import Path
from typing import Any

from ldm.errors import UserError, printable
from ldm.interop.folder import read_json

log = logging.getLogger("ldm")
WEIGHT, WORDS, NEGATIVE = "preferred weight", "activation text", "negative text"
_NOTES = ("sd version", "vae", "notes", "description")  # A1111's other fields
_INFO = {"trainedWords": WORDS, "baseModel": "sd version"}  # of civitai's description, as A1111 calls them
_UNSAID: tuple[Any, ...] = (None, "", 0, [], "Unknown")
_LONGEST = 80


def beside(path: str | Path) -> dict[str, Any]:
    """What is said of the file at `path` in the files of its name beside it, under A1111's names of fields.

    Raises UserError where A1111's file isn't a table in JSON.
    """
    path = Path(path)
    own, info = path.with_suffix(".json"), path.with_suffix(".civitai.info")
    said: dict[str, Any] = {}
    if info.is_file():
        read = read_json(info)
        said = {ours: read[theirs] for theirs, ours in _INFO.items() if theirs in read}
    if own.is_file():
        said |= {key: value for key, value in read_json(own).items() if value not in _UNSAID}
    return {key: value for key, value in said.items() if value not in _UNSAID}


def tell(path: str | Path, scale: float | None = None) -> None:
    """Says in one line what is beside the file and isn't applied; `scale` is the one that a LoRA is loaded at, None
    for a checkpoint, which has none."""
    try:
        said = beside(path)
    except UserError as error:
        log.warning("%s: nothing beside it is taken: %s", path, error)
        return
    if scale is not None and said.get(WEIGHT) == scale:
        del said[WEIGHT]
    if said:
        log.warning(
            "%s: beside it is said %s; none of it is applied by itself%s",
            path, ", ".join(f"{_short(key)} {_short(value)!r}" for key, value in _sorted(said)), _advice(said, scale),
        )  # fmt: skip


def _sorted(said: dict[str, Any]) -> list[tuple[str, Any]]:
    """A1111's fields first."""
    first = (WEIGHT, WORDS, NEGATIVE, *_NOTES)
    return sorted(said.items(), key=lambda item: first.index(item[0]) if item[0] in first else len(first))


def _advice(said: dict[str, Any], scale: float | None) -> str:
    ways = []
    if WEIGHT in said and scale is not None:
        ways.append(f"load it at scale {_short(said[WEIGHT])}")
    if WORDS in said:
        ways.append("write the activation text into the prompt")
    if NEGATIVE in said:
        ways.append("write the negative text into the negative prompt")
    return f": {', '.join(ways)}" if ways else ""


def _short(value: Any) -> str:
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
