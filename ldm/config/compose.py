"""Composes conf/ with Hydra: the config of a command line, and the config that shows which keys exist."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def group_names(words: Sequence[str] = ()) -> set[str]:
    """The config groups: the subfolders of conf/ and of the folders that `words` name by --config-dir."""
    given = [after for word, after in itertools.pairwise([*words, ""]) if word in ("--config-dir", "-cd")]
    given += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    folders = [CONF, *(Path(folder) for folder in given if Path(folder).is_dir())]
    return {entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()}


def compose(script: str, options: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config that `script` composes from these overrides, and the chosen file of each group.

    Hydra has to be initialised, as it is inside `hydra.main` and `hydra.initialize_config_dir`.
    """
    cfg = GlobalHydra.instance().config_loader().load_configuration(script, list(options), RunMode.RUN)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), dict(cfg.hydra.runtime.choices)


def defaults_of(script: str, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the chosen groups alone, without the experiment and the overrides: it shows which keys exist.

    This is a second composition because the first one accepts any key: overrides come in as `++key=`, and an
    experiment's file may contain a misspelt key too.
    """
    primary = yaml.safe_load((CONF / f"{script}.yaml").read_text())
    groups = [key for entry in primary.get("defaults", []) if isinstance(entry, dict) for key in entry]
    options = [f"{group}={choices[group]}" for group in groups if choices.get(group) and group != "experiment"]
    return _composed_once(script, tuple(options))


@functools.lru_cache  # the jobs of a sweep mostly choose the same groups
def _composed_once(script: str, options: tuple[str, ...]) -> dict[str, Any]:
    return plain(compose(script, options)[0], resolve=False)


def plain(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """A composed config as dicts and lists; its interpolations are resolved or left as written."""
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]
