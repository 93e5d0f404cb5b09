"""A composed config, checked and made plain, before any work starts.

A section with a `class:` is checked against the constructor of its class, every other one against its YAML and what
`ldm.config.options` declares.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.common import annotations, registry
from ldm.common.errors import UserError, did_you_mean
from ldm.config import descriptions
from ldm.config.compose import CONF, defaults_of, plain
from ldm.config.explaining import explain
from ldm.config.options import BY_NAME, Option, Options, options_of
from ldm.config.trial import cut_to_trial

# Whose classes a config can name.
_REGISTERING = (
    "ldm.data",
    "ldm.networks",
    "ldm.conditioning",
    "ldm.diffusion",
    "ldm.training.finetune.kinds",
    "ldm.training.auto.settle",
)
_GROUP_OF_NETWORK = {"UNet": "unet", "DiT": "dit"}


def checked(script: str, cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config as a plain dict. Raises UserError for options that are missing, unknown, of a wrong type or out of
    range."""
    try:
        _refuse_missing(script, cfg)
        config = plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    if config.get("modules"):
        _import_modules(config)
    defaults = defaults_of(script, choices)
    _refuse_sizes_of_another_network(config, defaults, choices)
    try:
        own = {key: option for key, option in options_of(script).items() if key in defaults}
        _check_section(config, defaults, "", own)
    except UserError as error:
        raise _with_network(error, config, choices) from None
    if "trainer" in config:  # other commands needn't wait until Lightning is imported
        _check_trainer(_mapping(config["trainer"]))
    return cut_to_trial(config, int(os.environ.get("LDM_FAST") or 0))


def refuse_sizes_beside_base(config: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raises UserError where a command line gives sizes of an autoencoder beside a base, which has its own."""
    if not config.get("base"):
        return
    given = [word.lstrip("+~").partition("=") for word in words]
    if sizes := [key for key, _, value in given if key.startswith("vae.") or (key == "vae" and value != "auto")]:
        raise UserError(
            f"{sizes[0]}= can't be combined with base={config['base']}: the base's weights fit only its own sizes. "
            f"Leave out {' and '.join(f'{key}=' for key in dict.fromkeys(sizes))}, or base=."
        )


def _refuse_missing(script: str, cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        listed = [f"{key}= ({meaning})" if (meaning := _meaning(script, key, cfg)) else f"{key}=" for key in missing]
        raise UserError(f"give {', '.join(listed)}.")


def _meaning(script: str, key: str, cfg: DictConfig) -> str | None:
    """The comment beside a value that YAML leaves open as ???, in the script's file or in one with the same class."""
    section, _, last = key.rpartition(".")
    kind = OmegaConf.select(cfg, f"{section}.class") if section else None
    for file in sorted(CONF.rglob("*.yaml")) if section else [CONF / f"{script}.yaml"]:
        comment = descriptions.comment_beside_open_value(file, last)
        if comment and (kind is None or kind in descriptions.classes_in(file)):
            return comment
    return None


def _import_modules(config: dict[str, Any]) -> None:
    """Imports the user's own modules, from the working folder too, which registers their classes."""
    from ldm.training.trainer.fit import import_modules

    if isinstance(config["modules"], str):
        config["modules"] = [config["modules"]]
    sys.path.append("")
    import_modules(config)


def _refuse_sizes_of_another_network(
    config: Mapping[str, Any], defaults: Mapping[str, Any], choices: Mapping[str, Any]
) -> None:
    """`network.class=UNet` beside network=auto would give a U-Net the sizes that were measured for the DiT."""
    if choices.get("network") != "auto":
        return
    network, measured = _mapping(config.get("network")), dict(_mapping(defaults.get("network")))
    given, chosen = network.get("class"), measured.pop("class", None)
    keeps_sizes = measured and measured.items() <= network.items()
    if given != chosen and given in _GROUP_OF_NETWORK and keeps_sizes:
        raise UserError(
            f"network.class={given}: network=auto has chosen the sizes of a {chosen}, which suits these data; "
            f"network={_GROUP_OF_NETWORK[given]} has the sizes of a {given}."
        )


def _with_network(error: UserError, config: Mapping[str, Any], choices: Mapping[str, Any]) -> UserError:
    """Adds to a message about an option that the DiT lacks: network=auto has chosen the DiT."""
    chosen = choices.get("network") == "auto" and str(error).startswith("network.")
    if not chosen or config["network"].get("class") != "DiT":
        return error
    return UserError(
        f"{error} network=auto has chosen the DiT, which suits these data; network=unet chooses the U-Net."
    )


def _check_section(config: dict[str, Any], defaults: Mapping[str, Any], path: str, declared: Options) -> None:
    """Checks the names in a section, then its values and the sections within it; `path` is '' for the whole config."""
    known = set(defaults) | set(declared)
    if path == "conditioner":  # takes conditions of any name
        known |= {key for key, value in config.items() if _names_class(value)}
    prefix = f"{path}." if path else ""
    for key in config:
        if key not in known:
            raise UserError(f"there is no option {prefix}{key}.{did_you_mean(key, known)}")
    for key, value in config.items():
        where, default = f"{prefix}{key}", defaults.get(key)
        if _names_class(value):
            _check_component(value, _mapping(default), where)
        elif isinstance(value, dict) and key not in BY_NAME:
            _check_section(value, _mapping(default), where, options_of(where))
        else:
            declared.get(key, Option()).check(value, default, where)


def _check_component(spec: dict[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    for package in _REGISTERING:
        importlib.import_module(package)
    _drop_defaults_of_other_class(spec, defaults)
    registry.check(spec, where)
    _check_kinds(spec, where)


def _check_kinds(spec: Mapping[str, Any], where: str) -> None:
    """Checks a component's values against its constructor's annotations, and those of the components within it."""
    declared = annotations.annotations_of(registry.lookup(spec["class"]).__init__)
    for key, value in spec.items():
        if _names_class(value):
            _check_kinds(value, f"{where}.{key}")
        elif key in declared:
            annotations.check_value(value, declared[key], f"{where}.{key}")


def _drop_defaults_of_other_class(spec: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """After `network.class=MyNet`, removes YAML's options for the replaced class that MyNet doesn't take."""
    if spec["class"] == defaults.get("class") or not isinstance(spec["class"], str):
        return
    known = registry.parameters(spec["class"])
    for key in [key for key in spec if key in defaults and key not in known and spec[key] == defaults[key]]:
        del spec[key]


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuses invalid times, options that a run sets itself, and a run of no steps."""
    from ldm.training.optimization.learning_rate import parse_time
    from ldm.training.trainer import options as trainer_options

    if trainer.get("max_time") is not None:
        parse_time(trainer["max_time"])
    trainer_options.check(trainer)
    if trainer.get("max_steps") == 0:
        raise UserError("trainer.max_steps=0 trains nothing: give a number of steps, or -1 for no limit.")


def _names_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class" in value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
