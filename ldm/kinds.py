"""What a value may be, by the annotation of the parameter that it is for, in words that a user can act on."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ldm.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
_LISTS = (list, tuple, Sequence, Iterable)


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters; those that its own defaults don't fit mean something else."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # of somebody's class, which may name what isn't imported
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.name in hints and _own_default_fits(p, hints[p.name])}


def fits(value: Any, kind: Any) -> bool:
    """Whether plain data (numbers, words, lists, mappings) may stand for `kind`; what isn't known may."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if origin in (bool, str, type(None)):
        return isinstance(value, origin)
    if origin in _LISTS:
        return isinstance(value, (list, tuple)) and _each_fits(value, origin, inner)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values() if inner)
    return True


def refuse(value: Any, kind: Any, where: str) -> None:
    """Raises UserError where `value` doesn't fit."""
    if not fits(value, kind):
        raise UserError(f"{where}={shown(value)}: give {words(kind)}.")


def words(kind: Any) -> str:
    """`int | Sequence[int]` as 'a whole number or a list, each a whole number'."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(one) for one in inner))
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner and inner[-1] is not ...:
        return f"[{','.join(words(one).removeprefix('a ') for one in inner)}]"
    if origin in _LISTS:
        return f"a list, each {words(inner[0])}" if inner else "a list"
    if origin in (dict, Mapping):
        return f"{words(inner[1])} for each by its name" if inner else "a mapping"
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def shown(value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(shown, value))}]"
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def _each_fits(values: Sequence[Any], origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and inner and inner[-1] is not ...:
        return len(values) == len(inner) and all(map(fits, values, inner))
    return all(fits(value, inner[0]) for value in values if inner)


def _own_default_fits(parameter: inspect.Parameter, kind: Any) -> bool:
    return parameter.default is parameter.empty or fits(parameter.default, kind)
