"""Checks of values against type annotations, with messages that a user can act on.

The same annotations serve a call in Python (`check_arguments`) and options on the command line (`check_value`).
"""

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
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_FLOAT32 = 3.4e38
MAX_GUIDANCE = 1e4  # up to about 15 is useful; far beyond, images turn to noise and then to NaN
Function = TypeVar("Function", bound=Callable[..., Any])


def replace_surrogates(text: str) -> str:
    """`text` with U+FFFD in place of each lone surrogate, which UTF-8 can't encode and no file can hold."""
    return _SURROGATE.sub("\ufffd", text)


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters by name.

    Left out are those that the parameter's own default doesn't fit, as in `size: int = None`: they can't be relied on.
    """
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a user's class may name types that aren't imported
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.name in hints and _own_default_fits(p, hints[p.name])}


def optional_parameters(function: Any, except_for: Sequence[str] = ()) -> dict[str, Any]:
    """Name and annotation of a function's parameters that have a default; `Any` where there is no annotation."""
    annotations = annotations_of(function)
    return {
        parameter.name: annotations.get(parameter.name, Any)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not parameter.empty and parameter.name not in except_for
    }


def check_arguments(function: Function) -> Function:
    """Decorator: raises UserError for arguments that don't fit the annotations, before the function does anything."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        """Checks the arguments, then calls the function."""
        annotations = annotations_of(function)
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            check_argument(value, annotations.get(name, Any), name)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_argument(value: Any, annotation: Any, name: str) -> None:
    """Raises UserError where an argument of a call in Python doesn't fit its annotation, is NaN, or overflows float32.

    Arrays and tensors may stand for numbers and lists of them. A single number has to be finite; a list may hold
    infinities, as an interval without an upper end does.
    """
    if annotation is Any:
        return
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not fits(plain, annotation):
        raise UserError(f"{name}={value!r}: give {_describe_for_python(annotation)}.")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise UserError(f"{name}={value!r}: give a finite number.")
    elements = _elements(plain)
    if any(isinstance(element, float) and math.isnan(element) for element in elements):
        raise UserError(f"{name}={value!r}: give numbers.")
    if any(
        isinstance(element, (int, float)) and MAX_FLOAT32 < abs(element) < math.inf for element in (plain, *elements)
    ):
        raise UserError(f"{name}= is beyond the range of float32: give a number of at most {MAX_FLOAT32:g}.")


def check_guidance(value: Any, name: str = "guidance") -> None:
    """Raises UserError where a guidance scale, or one of several in a mapping, is too large or not a number."""
    scales = value.values() if isinstance(value, Mapping) else [value]
    if not all(abs(scale) <= MAX_GUIDANCE for scale in scales):
        raise UserError(
            f"{name}={value}: give a finite number of at most {MAX_GUIDANCE:g}; 1 is off, 2 to 15 are usual."
        )


def fits(value: Any, annotation: Any) -> bool:
    """Whether plain data (numbers, words, lists, mappings) fits `annotation`. Anything fits a type unknown here."""
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if _is_union(annotation):
        return any(fits(value, member) for member in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if origin in (bool, str, type(None)):
        return isinstance(value, origin)
    if origin in _LISTS:
        accepted = (list, tuple) if origin in (list, tuple) else Sequence
        return isinstance(value, accepted) and not isinstance(value, (str, bytes)) and _all_fit(value, origin, inner)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values() if inner)
    return True


def check_value(value: Any, annotation: Any, where: str) -> None:
    """Raises UserError where the value of the option `where` doesn't fit its annotation."""
    if not fits(value, annotation):
        raise UserError(f"{where}={as_typed(value)}: give {describe(annotation)}.")


def describe(annotation: Any) -> str:
    """An annotation in words: `int | Sequence[int]` as 'a whole number or a list of values, each a whole number'."""
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if _is_union(annotation):
        return " or ".join(dict.fromkeys(describe(member) for member in inner))
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner and inner[-1] is not ...:
        return f"[{','.join(describe(element).removeprefix('a ') for element in inner)}]"
    if origin in _LISTS:
        return f"a list of values, each {describe(inner[0])}" if inner else "a list"
    if origin in (dict, Mapping):
        return f"{describe(inner[1])} for each name" if inner else "a mapping"
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line: `[1,true,null]`."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_typed, value))}]"
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def _describe_for_python(annotation: Any) -> str:
    members = typing.get_args(annotation) if _is_union(annotation) else [annotation]
    wanted = dict.fromkeys(describe(member) for member in members if member is not type(None))
    return " or ".join(wanted).replace("true or false", "True or False")


def _elements(value: Any) -> Iterable[Any]:
    """The values of a mapping, the elements of a list or tuple; nothing for a single value."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _all_fit(values: Sequence[Any], origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and inner and inner[-1] is not ...:
        return len(values) == len(inner) and all(map(fits, values, inner))
    return all(fits(value, inner[0]) for value in values if inner)


def _own_default_fits(parameter: inspect.Parameter, annotation: Any) -> bool:
    return parameter.default is parameter.empty or fits(parameter.default, annotation)
