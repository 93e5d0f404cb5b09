"""What a value may be, by the annotation of the parameter that it is for, in words that a user can act on."""

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from ldm.common.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
_LISTS = (list, tuple, Sequence, Iterable)
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a letter, or a byte that is no UTF-8: no file takes it
LARGEST = 3.4e38  # of float32
MAX_GUIDANCE = 1e4  # some 15 are the most that is of use; beyond, images are noise and then no numbers
Function = TypeVar("Function", bound=Callable[..., Any])


def readable(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which UTF-8 has no bytes for."""
    return _SURROGATE.sub("\ufffd", text)


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters; those that its own defaults don't fit mean something else."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # of somebody's class, which may name what isn't imported
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.name in hints and _own_default_fits(p, hints[p.name])}


def held(function: Function) -> Function:
    """`function`, which refuses arguments that don't fit its annotations before it does anything."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        declared = kinds_of(function)
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            argument(value, declared.get(name, Any), name)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def argument(value: Any, kind: Any, name: str) -> None:
    """Raises UserError where an argument of a call in Python doesn't fit, or has a number that is none.

    Arrays and tensors may stand for numbers and lists of them.
    """
    if kind is Any:
        return
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not fits(plain, kind):
        given = [one for one in typing.get_args(kind) or [kind] if one is not type(None)]
        wanted = " or ".join(dict.fromkeys(words(one) for one in given)) if _is_union(kind) else words(kind)
        raise UserError(f"{name}={value!r}: give {wanted.replace('true or false', 'True or False')}.")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise UserError(f"{name}={value!r}: give a finite number.")
    several = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, (list, tuple)) else ()
    if any(isinstance(one, float) and math.isnan(one) for one in several):
        raise UserError(f"{name}={value!r}: give numbers.")
    if any(isinstance(one, (int, float)) and LARGEST < abs(one) < math.inf for one in (plain, *several)):
        raise UserError(f"{name}= is beyond the numbers of float32: give one up to {LARGEST:g}.")


def check_guidance(value: Any, name: str = "guidance") -> None:
    """Raises UserError for a guidance scale, or one of several by name, that no image is made with."""
    scales = value.values() if isinstance(value, Mapping) else [value]
    if not all(abs(scale) <= MAX_GUIDANCE for scale in scales):
        raise UserError(
            f"{name}={value}: give a finite number of at most {MAX_GUIDANCE:g}; 1 is off, 2 to 15 are usual."
        )


def optional(function: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    """The kinds of a function's parameters that may be left out, without those called as in `but`."""
    parameters, declared = inspect.signature(function).parameters.values(), kinds_of(function)
    return {p.name: declared.get(p.name, Any) for p in parameters if p.default is not p.empty and p.name not in but}


def fits(value: Any, kind: Any) -> bool:
    """Whether plain data (numbers, words, lists, mappings) may stand for `kind`; what isn't known may."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if _is_union(kind):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if origin in (bool, str, type(None)):
        return isinstance(value, origin)
    if origin in _LISTS:
        listed = (list, tuple) if origin in (list, tuple) else Sequence
        return isinstance(value, listed) and not isinstance(value, (str, bytes)) and _each_fits(value, origin, inner)
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
    if _is_union(kind):
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


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _each_fits(values: Sequence[Any], origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and inner and inner[-1] is not ...:
        return len(values) == len(inner) and all(map(fits, values, inner))
    return all(fits(value, inner[0]) for value in values if inner)


def _own_default_fits(parameter: inspect.Parameter, kind: Any) -> bool:
    return parameter.default is parameter.empty or fits(parameter.default, kind)
