"""Tables of names: the state dict of one format under the names of another, one to one."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ldm.common.errors import UserError

T = TypeVar("T")
_OFF: tuple[Any, ...] = (None, False, [], {}, "")


def bijection(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The table {ours: theirs}. Raises ValueError if a name occurs twice on either side."""
    pairs = list(pairs)
    for side in (0, 1):
        seen = [pair[side] for pair in pairs]
        if twice := sorted({name for name in seen if seen.count(name) > 1} if len(set(seen)) < len(seen) else ()):
            raise ValueError(f"a table of names must be one to one; these occur twice: {', '.join(twice[:4])}")
    return dict(pairs)


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """{theirs: ours}."""
    return bijection((b, a) for a, b in table.items())


def by_prefix(names: Iterable[str], modules: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """The table {ours: theirs} for full `names`, from tables of modules and of the parts inside a module.

    `modules` maps modules (`down_blocks.0.resnets.0` -> `input_blocks.1.0`; the longest prefix is used), and `parts`
    maps what is inside (`conv1` -> `in_layers.2`; other parts keep their names).
    """
    return bijection((name, _translated(name, modules, parts)) for name in names)


def rename(state: Mapping[str, T], table: Mapping[str, str], where: str) -> dict[str, T]:
    """`state` with its names replaced by the table. Names and keys of the table must be the same set."""
    missing = [name for name in table if name not in state]
    unexpected = [name for name in state if name not in table]
    if missing or unexpected:
        raise UserError(f"{where}: the weights don't fit: {report(missing, unexpected)}.")
    return {table[name]: tensor for name, tensor in state.items()}


def refuse_twice(table: Mapping[str, str], where: str) -> None:
    """Raises UserError where two names of a file stand for one weight of ours, by the table {theirs: ours}."""
    theirs: dict[str, str] = {}
    for name, ours in table.items():
        if (other := theirs.setdefault(ours, name)) != name:
            raise UserError(f"{where}: {other} and {name} are the same weight: leave one of them out of the file.")


def report(missing: Iterable[str], unexpected: Iterable[str], most: int = 8) -> str:
    """A list of missing and unexpected names for a message."""
    problems = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]
    return "; ".join(problems[:most]) + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def refuse(config: Mapping[str, Any], known: Iterable[str], fixed: Mapping[str, Any], what: str) -> None:
    """Refuses by name every setting of another tool's config for which our classes have no counterpart.

    `known` settings are read elsewhere; `fixed` ones must have the given value (or one of a tuple of values). Others
    must be off (None, False or empty), or private notes of a tool (`_class_name`, `_name_or_path`).
    """
    wrong = []
    for key, value in config.items():
        if key in known or _is_private_note(key, value, (*known, *fixed)):
            continue
        allowed = fixed.get(key, _OFF)
        if not _same(value, allowed):
            wrong.append(f"{key}={value!r}")
    if wrong:
        raise UserError(f"{what} can't be represented here: {', '.join(wrong)}.")


def _is_private_note(key: str, value: Any, settings: tuple[str, ...]) -> bool:
    """Whether a setting is a private note that changes nothing: it begins with an underscore, isn't the private form of
    a setting, and holds no numbers."""
    values = value if isinstance(value, (list, tuple)) else [value]
    numbers = any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return key.startswith("_") and key.lstrip("_") not in settings and not numbers


def _same(value: Any, allowed: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(_same(v, allowed) for v in value)
    options = allowed if isinstance(allowed, tuple) else (allowed,)
    return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in options)  # 0 isn't off


def _translated(name: str, modules: Mapping[str, str], parts: Mapping[str, str]) -> str:
    words = name.split(".")
    for end in range(len(words), 0, -1):
        if (prefix := ".".join(words[:end])) in modules:
            rest = ".".join(words[end:])
            return ".".join(filter(None, [modules[prefix], _part(rest, parts)]))
    return name


def _part(rest: str, parts: Mapping[str, str]) -> str:
    stem, _, leaf = rest.rpartition(".")
    return f"{parts[stem]}.{leaf}" if stem in parts else rest
