"""The table of names and classes by which YAML and model files build objects.

A spec is plain data, `{"class": "UNet", "channels": [64, 128], ...}`. `build` makes the object, and `spec_of` gives the
spec back, with every argument that the constructor received. A name that isn't registered is refused, so a file can
never name code to run.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from ldm.common.errors import UserError, did_you_mean

_CLASSES: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Makes `cls` available to YAML and model files by its name; its instances remember their arguments.

    Users' own classes are registered in the same way: `@ldm.register class MyUNet(nn.Module): ...`, and then named as
    `network.class=MyUNet`.
    """
    init: Any = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remember(self, *args, **kwargs):
        """The constructor, which first stores its arguments in `_spec`."""
        if type(self) is cls:
            bound = signature.bind(self, *args, **kwargs)
            arguments = dict(list(bound.arguments.items())[1:])
            object.__setattr__(self, "_spec", {"class": cls.__name__, **arguments})
        init(self, *args, **kwargs)

    cls.__init__ = remember  # type: ignore[misc]
    _CLASSES[cls.__name__] = cls
    return cls


def lookup(name: str) -> Any:
    """The class registered as `name`. Raises UserError for an unknown name."""
    if name not in _CLASSES:
        raise UserError(f"no class is registered as '{name}'.{did_you_mean(name, _CLASSES)}")
    return _CLASSES[name]


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The constructor's parameters of the class registered as `name`: the schema of its section in YAML."""
    return dict(list(inspect.signature(lookup(name).__init__).parameters.items())[1:])


def check(spec: Mapping[str, Any], where: str = "") -> None:
    """Raises UserError for a spec with an unknown class or option, in nested specs too, before anything is built.

    `where` is the section's key, for messages.
    """
    name = spec.get("class")
    if not isinstance(name, str):
        raise UserError(f"{where or 'a section'} must name its class, as in `{where or 'network'}.class=UNet`.")
    known = parameters(name)
    for key, value in spec.items():
        if key != "class" and key not in known:
            raise UserError(
                f"{where + '.' if where else ''}{key}: {name} has no such option.{did_you_mean(key, known)}"
            )
        if isinstance(value, Mapping) and "class" in value:
            check(value, f"{where}.{key}" if where else key)


def build(spec: Mapping[str, Any], where: str = "", **derived: Any) -> Any:
    """The object that `spec` describes. `derived` arguments, from the data or another model, override the spec.

    Raises UserError where a name is unknown or a required argument is missing.
    """
    check(spec, where)
    arguments = {key: _build_value(value) for key, value in spec.items() if key != "class"} | derived
    required = [
        key
        for key, parameter in parameters(spec["class"]).items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    missing = [key for key in required if key not in arguments]
    if missing:
        raise UserError(f"{where or spec['class']}: {spec['class']} needs {', '.join(missing)}.")
    return lookup(spec["class"])(**arguments)


def spec_of(thing: Any) -> dict[str, Any]:
    """The spec of an object of a registered class: `build(spec_of(x))` makes an object like x.

    Raises UserError for another class, and for arguments that aren't plain data.
    """
    spec = getattr(thing, "_spec", None)
    if spec is None:
        raise UserError(f"{type(thing).__name__} isn't registered: put @ldm.register above its class.")
    return {key: _plain(value) for key, value in spec.items()}


def _build_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "class" in value else {key: _build_value(v) for key, v in value.items()}
    return [_build_value(v) for v in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "_spec"):
        return spec_of(value)
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{value!r} can't be kept in a model file: use numbers, text, lists or registered classes.")
