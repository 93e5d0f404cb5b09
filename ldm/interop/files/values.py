"""Values in other tools' files: tables in JSON, numbers, switches. Errors say in one sentence what is wrong."""

import json
import math
import re
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError

_OFF = ("", "none", "null", "false", "{}", "[]")


def table(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else, and for a name that occurs twice: readers take either."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object's pairs as a dict. Raises UserError for a repeated name."""
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{where} says {twice[0][:60]!r} twice: keep the one that is right.")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} can't be read as JSON ({type(error).__name__}): get the file anew.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a {type(content).__name__}, where a table of settings belongs.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The table in the JSON file at `path`. Raises UserError where it is missing or no table."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the folder isn't a whole model of diffusers.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({type(error).__name__}).") from None
    return table(text, str(path))


def number(value: Any, what: str) -> float:
    """A finite number. Raises UserError naming `what` it is."""
    try:
        if isinstance(value, (bool, bytes)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{what} is {str(value)[:40]!r}, where a number belongs.") from None
    if not math.isfinite(result):
        raise UserError(f"{what} is {result}, where a finite number belongs.")
    return result


def whole(value: Any, what: str, least: int = 1, most: float = math.inf) -> int:
    """A whole number, not as text. Raises UserError naming `what` it is."""
    plain = number(value, what) if not isinstance(value, str) else math.nan
    if not (least <= plain <= most and plain == math.floor(plain)):
        bounds = f"from {least} on" if math.isinf(most) else f"from {least} to {most:g}"
        raise UserError(f"{what} is {str(value)[:40]!r}, where a whole number {bounds} belongs.")
    return int(plain)


def flag(value: Any, what: str) -> bool:
    """A switch, which metadata write as text. Raises UserError naming `what` it is."""
    if is_off(value) or str(value) == "0":
        return False
    if str(value).strip().lower() not in ("true", "1"):
        raise UserError(f"{what} is {str(value)[:40]!r}, where true or false belongs.")
    return True


def is_off(value: Any) -> bool:
    """Whether a value says nothing: None, False, emptiness, or the text of one of them."""
    return value is None or value is False or str(value).strip().lower() in _OFF


def word(name: str) -> str:
    """A name in lower case, with underscores between its words, however a tool spells it."""
    if re.fullmatch(r"[a-z0-9]+([A-Z][a-z0-9]+)+", name):  # loraAlpha
        name = re.sub(r"([A-Z])", r"_\1", name)
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
