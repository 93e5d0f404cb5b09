"""Callbacks of the user's own, which a config names: `callbacks: [{class: Printer, every: 100}]`."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import lookup

Specs = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None


def build_callbacks(config: Mapping[str, Any]) -> list[pl.Callback]:
    """The callbacks that `config["callbacks"]` names: a list of classes, or of mappings with `class` and its arguments.

    A class is one that `@ldm.register` registers, or MODULE.CLASS in one of the `modules` that the config imports. Only
    a config names them: no model file does. Raises UserError.
    """
    return [made(**arguments) for made, arguments in callback_classes(config)]


def callback_classes(config: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The classes of `build_callbacks` with their arguments, checked and not yet made."""
    specs: Specs = config.get("callbacks")
    listed = [specs] if isinstance(specs, (str, Mapping)) else list(specs or ())
    return [_checked(spec, config.get("modules") or ()) for spec in listed]


def _checked(spec: str | Mapping[str, Any], modules: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    options = {"class": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or not isinstance(options.get("class"), str):
        raise UserError(f"callbacks: {spec} names no class; write NAME, or {{class: NAME, option: value}}.")
    name = options["class"]
    made = _class_of(name, modules)
    arguments = {key: value for key, value in options.items() if key != "class"}
    _check_arguments(name, made, arguments)
    return made, arguments


def _class_of(name: str, modules: Sequence[str]) -> Any:
    module, _, last = name.rpartition(".")
    if not module:
        found = lookup(name)
    elif module not in modules:
        raise UserError(f"callbacks: {name} is in no module that this config imports; also give modules=[{module}].")
    else:
        found = getattr(sys.modules[module], last, None)
        if found is None:
            raise UserError(f"callbacks: {module} has no {last}.{did_you_mean(last, dir(sys.modules[module]))}")
    if not (inspect.isclass(found) and issubclass(found, pl.Callback)):
        raise UserError(f"callbacks: {name} isn't a lightning.pytorch.Callback; derive it from that class.")
    return found


def _check_arguments(name: str, made: Any, arguments: Mapping[str, Any]) -> None:
    """Raises UserError for arguments that the class doesn't take, or lacks."""
    signature = inspect.signature(made)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [key for key in arguments if key not in signature.parameters and not takes_any]
    if unknown:
        hint = did_you_mean(unknown[0], signature.parameters)
        raise UserError(f"callbacks: {name} has no option '{unknown[0]}'.{hint}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"callbacks: {name}: {error}.") from None
