"""What Hydra composes, checked and made plain.

The constructor's signature is the schema: a section with a `class:` is checked against its class, the Trainer's and the
loggers' against Lightning's, and everything else against what the YAML of the chosen groups has.
"""

import functools
import importlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.common import annotations, registry
from ldm.common.errors import UserError, did_you_mean
from ldm.config import overrides

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def group_names(words: Sequence[str] = ()) -> set[str]:
    """The config groups: the folders of conf/ and of the folders given by --config-dir."""
    given = [after for word, after in itertools.pairwise([*words, ""]) if word in ("--config-dir", "-cd")]
    given += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    folders = [CONF, *(Path(folder) for folder in given if Path(folder).is_dir())]
    return {entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()}


# Composing -----------------------------------------------------------------------------------------------------------


def compose(script: str, options: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config that `script` composes from these overrides, and the groups' choices."""
    cfg = GlobalHydra.instance().config_loader().load_configuration(script, list(options), RunMode.RUN)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), dict(cfg.hydra.runtime.choices)


def each_job(script: str, options: Sequence[str]) -> Iterator[tuple[str, DictConfig, dict[str, Any]]]:
    """Name, config and group choices of every job of a sweep, where its values can be listed."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(list(options))
    if any(o.is_sweep_override() and not o.is_discrete_sweep() for o in parsed):
        return
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    for combination in itertools.product(*values):
        job = [str(word) for word in combination]
        name = overrides.job_name(swept_values(options, job)) or "job"
        yield name, *compose(script, job)


def swept_values(options: Sequence[str], job: Sequence[str] | None = None) -> list[tuple[str, Any]]:
    """Key and value of what differs between the jobs of a sweep: a job's overrides less those that all jobs share."""
    parser = OverridesParser.create()
    shared = {o.key_or_group for o in parser.parse_overrides(list(options)) if not o.is_sweep_override()}
    job = HydraConfig.get().overrides.task if job is None else job
    return [(o.key_or_group, o.value()) for o in parser.parse_overrides(list(job)) if o.key_or_group not in shared]


def _reference(script: str, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the chosen groups alone, without experiment and overrides: which keys there are."""
    primary = yaml.safe_load((CONF / f"{script}.yaml").read_text())
    groups = [key for entry in primary.get("defaults", []) if isinstance(entry, dict) for key in entry]
    options = [f"{group}={choices[group]}" for group in groups if choices.get(group) and group != "experiment"]
    return _composed_once(script, tuple(options))


@functools.lru_cache  # a sweep's jobs mostly choose the same groups
def _composed_once(script: str, options: tuple[str, ...]) -> dict[str, Any]:
    return _plain(compose(script, options)[0], resolve=False)


def _plain(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]


_RANGES = {
    "batch_size": (1, math.inf),
    "beta": (0, math.inf),
    "beta_warmup_steps": (0, math.inf),
    "columns": (1, math.inf),
    "skip_bad_batches": (0, math.inf),
    "optimizer.lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.warmup_steps": (0, math.inf),
    "ema.decay": (0, 1),
    "ema.snapshots": (2, math.inf),
    "checkpoint.every_n_steps": (1, math.inf),
    "checkpoint.keep_last": (1, math.inf),
    "samples.every_n_steps": (0, math.inf),
    "samples.n": (1, math.inf),
    "loader.workers": (0, math.inf),
}
_CHOICES = {
    "latents": ("cached", "online"),
    "latents_dtype": ("float32", "float16"),
    "train": ("all", "decoder"),
}
Kinds = dict[str, Any]  # an option's name and its annotation
_BY_NAME = ("guidance", "control_image", "control_from", "control_scale", "control_start", "control_end")

# Checking ------------------------------------------------------------------------------------------------------------


def checked(script: str, cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config as a plain dict, or a UserError that says what is missing or unknown in it."""
    try:
        _refuse_missing(script, cfg)
        config = _plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    if config.get("modules"):
        _import_modules(config)
    reference = _reference(script, choices)
    _refuse_numbers_of_another_network(config, reference, choices)
    try:
        own = {"compile": bool | str} | _SCRIPTS.get(script, dict)()
        _check_section(config, reference, "", {key: kind for key, kind in own.items() if key in reference})
    except UserError as error:
        raise _with_network(error, config, choices) from None
    _check_ranges(config)
    _check_choices(config)
    return hurried(config, int(os.environ.get("LDM_FAST") or 0))


def hurried(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The config cut down to a trial of at most `steps` training and sampling steps; 0 leaves it as it is.

    The environment variable LDM_FAST gives the number: with it every command line of the documentation runs in seconds,
    through all of its code, for a result that is worth nothing.
    """
    if steps and "trainer" in config:
        given = config["trainer"].get("max_steps") or -1
        fewer = min(given, steps) if given > 0 else steps
        config["trainer"] |= {"max_steps": fewer, "max_time": None, "limit_val_batches": 1}
        config["samples"]["n"] = min(config["samples"]["n"], 2)
    elif steps and "reference_n" in config:  # evaluate: as little as its distances take
        config |= {"n": 8, "seeds": 1, "reference_n": 64, "features": "random"}
        config["curve"]["n"] = 8
    if steps and config.get("stage") == "ldm":
        config["steps"] = steps
    return config


def _refuse_missing(script: str, cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        listed = [f"{key}= ({meaning})" if (meaning := _meaning(script, key, cfg)) else f"{key}=" for key in missing]
        raise UserError(f"please give {', '.join(listed)}.")


def _meaning(script: str, key: str, cfg: DictConfig) -> str | None:
    """What a value that YAML leaves open means: the comment beside its ???, in the script's file or its class's."""
    section, _, last = key.rpartition(".")
    kind = OmegaConf.select(cfg, f"{section}.class") if section else None
    for file in sorted(CONF.rglob("*.yaml")) if section else [CONF / f"{script}.yaml"]:
        text = file.read_text()
        found = re.search(rf"^ *{last}: \?\?\? *# *(.+)$", text, re.MULTILINE)
        if found and (kind is None or f"class: {kind}" in text):
            return found[1]
    return None


def _import_modules(config: dict[str, Any]) -> None:
    """The user's own modules, from the working folder too: importing them registers their classes."""
    from ldm.training.trainer.fit import import_modules

    if isinstance(config["modules"], str):
        config["modules"] = [config["modules"]]
    sys.path.append("")
    import_modules(config)


def _refuse_numbers_of_another_network(
    config: Mapping[str, Any], reference: Mapping[str, Any], choices: Mapping[str, Any]
) -> None:
    """`network.class=UNet` alone would give a U-Net the sizes that were measured for the DiT."""
    groups = {"UNet": "unet", "DiT": "dit"}
    network, measured = _mapping(config.get("network")), dict(_mapping(reference.get("network")))
    asked, took = network.get("class"), measured.pop("class", None)
    kept = measured and measured.items() <= network.items()
    if choices.get("network") == "auto" and asked != took and asked in groups and kept:
        raise UserError(
            f"network.class={asked}: network=auto took sizes of a {took}, which suits these data; "
            f"network={groups[asked]} takes the {asked} with its own."
        )


def _with_network(error: UserError, config: Mapping[str, Any], choices: Mapping[str, Any]) -> UserError:
    """Where an option of a network isn't known, whose it would be: nobody asked for the one that the data chose."""
    chosen = choices.get("network") == "auto" and str(error).startswith("network.")
    if not chosen or config["network"].get("class") != "DiT":
        return error
    return UserError(f"{error} network=auto took the DiT, which suits these data; network=unet takes the U-Net.")


def refuse_sizes_beside_base(config: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raises UserError where a command line gives sizes beside a base, which has its own."""
    if not config.get("base"):
        return
    given = [word.lstrip("+~").partition("=") for word in words]
    if sizes := [key for key, _, value in given if key.startswith("vae.") or (key == "vae" and value != "auto")]:
        raise UserError(
            f"{sizes[0]}= beside base={config['base']}: the sizes are those of the base, whose weights fit no others. "
            f"Leave out {' and '.join(f'{key}=' for key in dict.fromkeys(sizes))}, or base=."
        )


def _check_section(
    section: dict[str, Any], reference: Mapping[str, Any], path: str, declared: Kinds | None = None
) -> None:
    declared = _SIGNATURES.get(path, dict)() if declared is None else declared
    known = set(reference) | set(declared)
    known |= {key for key in section if path == "conditioner" and _is_component(section[key])}  # any parts
    for key in section:
        if key not in known:
            raise UserError(f"there is no option {path}{path and '.'}{key}.{did_you_mean(key, known)}")
    for key, value in section.items():
        where = f"{path}.{key}" if path else str(key)
        if _is_component(value):
            _load_classes()
            _drop_of_other_class(value, _mapping(reference.get(key)))
            registry.check(value, where)
            _check_kinds(value, where)
        elif isinstance(value, dict) and key not in _BY_NAME:  # one for each condition or ControlNet, the model's own
            _check_section(value, _mapping(reference.get(key)), where)
        elif key in declared and (reference.get(key) is None or annotations.fits(reference[key], declared[key])):
            if value is not None:
                annotations.check_value(value, declared[key], where)
        else:
            _check_kind(value, reference.get(key), where)


def _check_kinds(spec: Mapping[str, Any], where: str) -> None:
    """A component's values by its constructor's annotations, the nested ones too."""
    declared = annotations.annotations_of(registry.lookup(spec["class"]).__init__)
    for key, value in spec.items():
        if _is_component(value):
            _check_kinds(value, f"{where}.{key}")
        elif key in declared:
            annotations.check_value(value, declared[key], f"{where}.{key}")


def _check_ranges(config: Mapping[str, Any]) -> None:
    """Refuses numbers that no run can be made of, of options that are no class's own."""
    for key, (low, high) in _RANGES.items():
        section, _, last = key.rpartition(".")
        value = _mapping(config.get(section)).get(last) if section else config.get(key)
        if isinstance(value, (int, float)) and not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{key}={value}: has to be {bounds}.")


def _check_choices(config: Mapping[str, Any]) -> None:
    """Refuses words that aren't one of the few that an option knows, and a time that is none."""
    for key, known in _CHOICES.items():
        if config.get(key, known[0]) not in known:
            raise UserError(f"{key}={config[key]}: give {' or '.join(known)}.")
    trainer = _mapping(config.get("trainer"))
    if trainer.get("max_time") is not None:
        from ldm.training.optimization.learning_rate import parse_time

        parse_time(trainer["max_time"])
    from ldm.training.trainer import options as trainer_options

    trainer_options.check(trainer)
    if trainer.get("max_steps") == 0:
        raise UserError("trainer.max_steps=0 trains nothing: give a number of steps, or -1 for a run without an end.")


def _drop_of_other_class(spec: dict[str, Any], reference: Mapping[str, Any]) -> None:
    """After `network.class=MyNet`: takes out what YAML says for the replaced class and MyNet doesn't have."""
    if spec["class"] == reference.get("class") or not isinstance(spec["class"], str):
        return
    known = registry.parameters(spec["class"])
    for key in [key for key in spec if key in reference and key not in known and spec[key] == reference[key]]:
        del spec[key]


def _check_kind(value: Any, reference: Any, where: str) -> None:
    """A number, a switch or a list of numbers in YAML is one on the command line too."""
    if value is None:
        return
    if isinstance(reference, (bool, int, float)):
        annotations.check_value(value, type(reference), where)
    elif isinstance(reference, list) and reference and annotations.fits(reference, list[float]):
        annotations.check_value(value, list[float], where)


def _is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "class" in value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _load_classes() -> None:
    """Makes our own classes known to the registry."""
    for package in (
        "ldm.data",
        "ldm.networks",
        "ldm.conditioning",
        "ldm.diffusion",
        "ldm.training.finetune.kinds",
        "ldm.training.auto",
    ):
        importlib.import_module(package)


def _trainer() -> Kinds:
    from lightning.pytorch import Trainer

    return annotations.optional_parameters(Trainer.__init__)


def _denoiser() -> Kinds:
    from ldm.diffusion import Denoiser

    return annotations.optional_parameters(Denoiser.__init__) | {"sampling": Any}


def _sampling() -> Kinds:
    from ldm.diffusion.options import sampling_kinds

    return sampling_kinds()


def _drawing() -> Kinds:
    """What sample.py has of the options of sampling and of `LatentDiffusion.generate`."""
    from ldm.model.latent_diffusion import LatentDiffusion

    asked = "n strength feather pad noise_level size batch_size guess_mode control_scale control_start control_end"
    generate = annotations.optional_parameters(LatentDiffusion.generate)
    return (
        {key: generate[key] for key in asked.split()}
        | _sampling()
        | {"seed": int, "columns": int, "autoguidance": float}
    )


def _evaluating() -> Kinds:
    own = _sampling()
    return {key: own[key] for key in ("sampler", "steps", "guidance")} | {"size": int | Sequence[int]}


def _optimizer() -> Kinds:
    from ldm.training.optimization.learning_rate import LearningRate

    return annotations.optional_parameters(LearningRate, ("total_steps",)) | {"lr": float | Literal["auto"]}


def _loader() -> Kinds:
    from ldm.data.datamodule import BatchModule

    return annotations.optional_parameters(BatchModule.__init__)


def _logger(name: str) -> Callable[[], Kinds]:
    def options() -> Kinds:
        from lightning.pytorch import loggers

        return annotations.optional_parameters(getattr(loggers, name).__init__, ("save_dir", "version"))

    return options


def _batches() -> Kinds:
    return {"batch_size": int | Literal["auto"]}


_SCRIPTS: dict[str, Callable[[], Kinds]] = {
    **{"sample": _drawing, "evaluate": _evaluating, "train_vae": _batches, "train_ldm": _batches}
}
_SIGNATURES: dict[str, Callable[[], Kinds]] = {
    "trainer": _trainer,
    "optimizer": _optimizer,
    "loader": _loader,
    "ema": lambda: {"lengths": Sequence[float] | None},
    "diffusion": _denoiser,
    "diffusion.sampling": _sampling,
    "logger": lambda: dict.fromkeys(("csv", "tensorboard", "wandb", "mlflow"), Any),
    "logger.tensorboard": _logger("TensorBoardLogger"),
    "logger.wandb": _logger("WandbLogger"),
    "logger.mlflow": _logger("MLFlowLogger"),
}


# Explaining ----------------------------------------------------------------------------------------------------------


def explain(error: Exception) -> str:
    """Hydra's, OmegaConf's or YAML's complaint as one line with a next step."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, OverrideParseException):
        word = str(error.override).lstrip("+")
        key = word.partition("=")[0]
        return (
            f"{word} can't be read; text in it needs quotes of its own, as in \"{key}='a, b'\" or \"{key}=['a','b']\"."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        if group.startswith("hydra/"):
            return f"{group}={choice} needs a package: pip install 'ldm[sweep]'."
        return f"{group}={choice}: there is no such choice.{did_you_mean(choice, error.options or [])}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        tab = " YAML is indented with blanks, not tabs." if "'\\t'" in str(error.problem) else ""
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}.{tab}"
    if match := re.match(r"In 'experiment/([^']+)': Could not override '([^']+)'", text):
        return f"experiment={match[1]} is one of stage two: train its stage one by the data's name, as in data=emoji."
    if match := re.match(r"Could not override '([^']+)'", text):
        return f"this command has no group {match[1]}; --help lists what it has."
    if match := re.match(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match[1].partition("=")
        key = key.lstrip("+")
        return f"{key} was given several values: for a sweep over them add -m, for a list write {key}=[{values}]."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}"
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return first
    return f"the command line can't be read ({type(error).__name__}: {first})."
