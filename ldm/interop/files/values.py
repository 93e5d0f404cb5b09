"""Values in other tools' files: JSON objects, numbers, switches. Each error says in one sentence what is wrong."""

import json
import math
import re
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError

_OFF = ("", "none", "null", "false", "{}", "[]")


def table(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else, and for a repeated name, as readers differ in which they
    use."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object's pairs as a dict. Raises UserError for a repeated name."""
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{where} has {twice[0][:60]!r} twice: keep the right one.")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} can't be read as JSON ({type(error).__name__}): download the file again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a {type(content).__name__}, where a table of settings belongs.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises UserError if it is missing or not an object."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the folder isn't a complete diffusers model.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({type(error).__name__}).") from None
    return table(text, str(path))


def number(value: Any, what: str) -> float:
    """A finite number. Raises UserError, in which `what` names the value."""
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
    """A whole number, not as text. Raises UserError, in which `what` names the value."""
    plain = number(value, what) if not isinstance(value, str) else math.nan
    if not (least <= plain <= most and plain == math.floor(plain)):
        bounds = f"from {least} on" if math.isinf(most) else f"from {least} to {most:g}"
        raise UserError(f"{what} is {str(value)[:40]!r}, where a whole number {bounds} belongs.")
    return int(plain)


def flag(value: Any, what: str) -> bool:
    """A switch, which metadata hold as text. Raises UserError, in which `what` names the value."""
    if is_off(value) or str(value) == "0":
        return False
    if str(value).strip().lower() not in ("true", "1"):
        raise UserError(f"{what} is {str(value)[:40]!r}, where true or false belongs.")
    return True


def is_off(value: Any) -> bool:
    """Whether a value means "nothing": None, False, empty, or one of these as text."""
    return value is None or value is False or str(value).strip().lower() in _OFF


def word(name: str) -> str:
    """A name in lower case with underscores between its words, whatever its spelling."""
    if re.fullmatch(r"[a-z0-9]+([A-Z][a-z0-9]+)+", name):  # loraAlpha
        name = re.sub(r"([A-Z])", r"_\1", name)
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
