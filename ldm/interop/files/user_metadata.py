"""Notes for users that web UIs write beside a file: A1111's `NAME.json`, the civitai helper's `NAME.civitai.info`,
LoRA-Manager's `NAME.metadata.json`. None of them is applied automatically: one warning says what they recommend."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError, printable
from ldm.interop.files.values import read_json, table

log = logging.getLogger("ldm")
WEIGHT, WORDS, NEGATIVE = "preferred weight", "activation text", "negative text"
_NOTES = ("sd version", "vae", "notes", "description")  # A1111's other fields
_INFO = {"trainedWords": WORDS, "baseModel": "sd version"}  # in civitai's description: A1111's names
_MANAGER = {"base_model": "sd version", "notes": "notes", "recommended_weight": WEIGHT}  # in LoRA-Manager's file
_SWIFT = {"lora_scale": WEIGHT}  # in swift's additional_config.json, in a LoRA's folder
_OWN = {"recommended_weight": WEIGHT, "modelspec.trigger_phrase": WORDS}  # in a LoRA's own metadata
_TIPS = {"strength": WEIGHT}  # in its usage_tips
_UNSAID: tuple[Any, ...] = (None, "", 0, [], "Unknown")
_LONGEST = 80


def beside(path: str | Path) -> dict[str, Any]:
    """What the files beside `path` declare, under A1111's names of fields.

    Raises UserError where one of them isn't a JSON object.
    """
    path = Path(path)
    own, info = path.with_suffix(".json"), path.with_suffix(".civitai.info")
    manager = path.with_suffix(".metadata.json")
    swift = path.with_name("additional_config.json")
    declared: dict[str, Any] = _named(read_json(swift), _SWIFT) if swift.is_file() else {}
    if manager.is_file():
        declared |= _of_manager(manager)
    if info.is_file():
        read = read_json(info)
        declared |= _named(read, _INFO)
    if own.is_file():
        declared |= {key: value for key, value in read_json(own).items() if value not in _UNSAID}
    return {key: value for key, value in declared.items() if value not in _UNSAID}


def in_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a LoRA's own metadata recommend, under A1111's names of fields."""
    return {key: value for key, value in _named(metadata, _OWN).items() if value not in _UNSAID}


def _of_manager(file: Path) -> dict[str, Any]:
    read = read_json(file)
    tips = read.get("usage_tips") or {}
    tips = table(tips, f"{file}: usage_tips") if isinstance(tips, str) else tips
    civitai = read.get("civitai")
    declared = _named(civitai, _INFO) if isinstance(civitai, dict) else {}
    declared |= {key: value for key, value in _named(read, _MANAGER).items() if value not in _UNSAID}
    return declared | (
        {_TIPS.get(str(key), str(key)): value for key, value in tips.items()} if isinstance(tips, dict) else {}
    )


def _named(read: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: read[theirs] for theirs, ours in names.items() if theirs in read}


def warn(path: str | Path, scale: float | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Warns, in one line, of what `metadata` or files beside this one recommend, as none of it is applied.

    `scale` is the scale at which a LoRA is loaded; None for a checkpoint, which has none.
    """
    try:
        declared = in_metadata(metadata or {}) | beside(path)
    except UserError as error:
        log.warning("%s: the files beside it aren't used: %s", path, error)
        return
    if scale is not None and _is_number(declared.get(WEIGHT), scale):
        del declared[WEIGHT]
    if declared:
        log.warning(
            "%s: files beside it recommend %s; none of it is applied automatically%s",
            path, ", ".join(f"{_short(key)} {_short(value)!r}" for key, value in _sorted(declared)),
            _advice(declared, scale),
        )  # fmt: skip


def _is_number(value: Any, wanted: float) -> bool:
    try:
        return float(value) == wanted
    except (TypeError, ValueError):
        return False


def _sorted(declared: dict[str, Any]) -> list[tuple[str, Any]]:
    """A1111's fields first."""
    first = (WEIGHT, WORDS, NEGATIVE, *_NOTES)
    return sorted(declared.items(), key=lambda item: first.index(item[0]) if item[0] in first else len(first))


def _advice(declared: dict[str, Any], scale: float | None) -> str:
    ways = []
    if WEIGHT in declared and scale is not None:
        ways.append(f"load it at scale {_short(declared[WEIGHT])}")
    if WORDS in declared:
        ways.append("write the activation text into the prompt")
    if NEGATIVE in declared:
        ways.append("write the negative text into the negative prompt")
    return f": {', '.join(ways)}" if ways else ""


def _short(value: Any) -> str:
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
