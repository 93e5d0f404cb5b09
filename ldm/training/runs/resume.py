"""Where a resumed run starts, and what it must have in common with the run that it continues."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ldm.common.errors import UserError
from ldm.common.registry import parameters
from ldm.training.optimization.learning_rate import LearningRate, parse_time
from ldm.training.runs.folder import RunFolder

# Options that only concern the places of files and what to do with the folder.
PLACES = ("resume", "overwrite", "name", "runs_dir", "cache_dir")
# Options that the weights, or their meaning, depend on: a run can't be resumed with others.
ARCHITECTURE = (
    "vae",
    "train",
    "network",
    "conditioner",
    "diffusion.parameterization",
    "diffusion.weighting.class",
    "finetune",
    "optimizer.name",
    "ema.lengths",
    "loss.adversarial",
    "loss.critic_channels",
    "loss.critic_layers",
)


# The values of options that the configs of earlier versions don't have.
IMPLIED: dict[str, Any] = {
    "latents_dtype": "float32",
    "train": "all",
    "callbacks": [],
    "unmasked_weight": 0.0,
    "balance": None,
    "captions": {"shuffle": False, "keep_first": 0, "drop": 0.0, "separator": ",", "wildcards": False},
    "distance": {"n": 0, "steps": 20, "features": "auto"},
    "kind": "lora",  # of a LoRA, and its patterns
    "rank_pattern": {},
    "alpha_pattern": {},
}


class Start(NamedTuple):
    """Where a run starts: at step 0, or at the step of its newest good checkpoint.

    `total` is the number of steps that the run was to have, and `rate` its last learning rate. `used` is the training
    time so far in seconds, or None where its checkpoint doesn't record it. For a run with a time limit, `limit` is that
    limit in seconds and `most` its limit of steps.
    """

    checkpoint: Path | None
    step: int = 0
    position: int = 0
    depends_on: Mapping[str, str] = {}
    classes: tuple[str, ...] = ()  # in the order of their numbers, for a model that is conditioned on them
    total: int | None = None
    rate: float = 0.0
    limit: float | None = None
    used: float | None = 0.0
    most: int | None = None
    ignored: int | None = None  # max_steps in its config, which earlier versions ignored if there was a time limit


def start_of(folder: RunFolder) -> Start:
    """The start that the folder's newest checkpoint gives. Weights aren't read, since the file is mapped."""
    path = folder.newest_checkpoint()
    if path is None:
        return Start(None)
    saved = _mapped(path)
    config = _read(folder.config)
    limit = limit_of(config)  # for checkpoints of earlier versions, which don't note it
    time = saved["callbacks"].get("TimeBudget") or {"limit": limit, "used": limit}
    return Start(
        path,
        step=saved["global_step"],
        position=saved["BatchModule"]["position"],
        depends_on=saved.get("ldm_depends_on", {}),
        classes=_classes(saved.get("ldm_model", {})),
        total=saved["ldm_total_steps"],
        rate=saved["optimizer_states"][0]["param_groups"][0]["lr"],
        limit=time["limit"],
        used=time["used"],
        most=time.get("most") if time["limit"] else None,
        ignored=steps_of(config) if time["limit"] and "most" not in time else None,
    )


def recorded(folder: RunFolder, start: Start) -> dict[str, Any]:
    """The config of a run that is resumed, with the choices it made; {} for a run that starts at step 0."""
    return dict(_read(folder.config)) if start.checkpoint else {}


def _mapped(path: Path) -> dict[str, Any]:
    """A checkpoint without its weights. Of several processes, only the first has checked so far that the file is
    whole."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} can't be read ({error}): give the same command again; it removes a damaged checkpoint, and "
            "continues from the previous one."
        ) from None


def limit_of(config: Mapping[str, Any]) -> float | None:
    """`trainer.max_time` in seconds; None without a time limit."""
    limit = (config.get("trainer") or {}).get("max_time")
    return parse_time(limit).total_seconds() if limit else None


def steps_of(config: Mapping[str, Any]) -> int | None:
    """`trainer.max_steps`; None without a limit on the steps."""
    steps = (config.get("trainer") or {}).get("max_steps")
    return steps if steps is not None and steps > 0 else None


def is_more(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether the config gives a finished run more steps, or more time, than it had.

    Raises UserError if it does and no checkpoint is left to continue from.
    """
    start, seconds, steps = start_of(folder), limit_of(config), steps_of(config)
    if start.checkpoint:
        by_steps = start.most is not None and start.step >= start.most  # whether steps, not time, ended the run
        had = start.used if by_steps or start.limit is None else start.limit
        return (steps is None or steps > start.step) and (seconds is None or seconds > (had or 0))
    old = _read(folder.config)
    before = steps_of(old)
    longer = seconds is not None and seconds > (limit_of(old) or 0)
    if longer or (before and steps and steps > before) or (seconds is None and steps is None):
        raise UserError(
            f"{folder.path} is finished and has no checkpoint left to continue from: fine-tune its model with "
            "finetune=full base=NAME, or start again with overwrite=true or another name=."
        )
    return False


def rescheduled(start: Start, config: Mapping[str, Any], rate: LearningRate) -> str | None:
    """Changes the learning rate's schedule if the run gets a new limit, and describes the change; None if it doesn't.

    The schedule becomes that of a run that had the new limit from the beginning. The rate has fallen faster than that
    so far, so it jumps.
    """
    limit, most = limit_of(config), steps_of(config)
    as_before = (start.most, start.ignored or start.most) if limit else (start.total,)
    if start.checkpoint is None or (limit == start.limit and most in as_before):
        return None
    if limit:
        done = max((start.used or 0.0) / limit, start.step / most if most else 0.0)
        rate.since, end = (start.step, min(1.0, done)), _time_left(start, limit)
        end += f", or to step {most}" if most else ""
    elif most is None:
        rate.since, end = (start.step, 0.0), "without an end"
    else:
        end = f"to step {most}"
    fall = "" if rate.schedule == "constant" else f", whose {rate.schedule} now ends there,"
    was, now = f"{start.rate:.3g}", f"{rate(start.step):.3g}"
    return f"trains on from step {start.step} {end}; the learning rate{fall} was {was} and is {now}"


def _time_left(start: Start, limit: float) -> str:
    if start.used is None:
        return f"for the {limit:g} s of trainer.max_time (its checkpoint doesn't record the time used before)"
    return f"for the {max(0, limit - start.used):.0f} s that are left of trainer.max_time"


def _classes(spec: Any) -> tuple[str, ...]:
    """The names of the classes in a model's spec, wherever its ClassLabel is."""
    if not isinstance(spec, Mapping):
        return ()
    if spec.get("class") == "ClassLabel":
        return tuple(spec.get("names") or ())
    for inner in spec.values():
        names = _classes(inner)
        if names:
            return names
    return ()


def check(
    folder: RunFolder,
    config: Mapping[str, Any],
    depends_on: Mapping[str, str],
    start: Start | None = None,
    whole: Callable[[], str] = lambda: "",
) -> Start:
    """Where the run starts. Prints what changed since it began; raises UserError if it would become another model.

    `depends_on` holds the hashes of `first_stage`, which the weights depend on, and of `data`, whose change is only
    printed: from here on, samples come in another order. `start` is the result of `start_of`, if that was called
    before. `whole` gives the hash of the first stage with its decoder, by which earlier versions named it.
    """
    start = start or start_of(folder)
    if start.checkpoint is None:
        return start
    implied = {key: value for key, value in IMPLIED.items() if key in config}
    changed = differences(_with_defaults(implied | dict(_read(folder.config)), config), config)
    described = "; ".join(f"{key} was {_show(old)}, is {_show(new)}" for key, (old, new) in changed.items())
    ways = "Give the old values, or start again with overwrite=true or another name="
    if any(_within(key, ARCHITECTURE) for key in changed):
        raise UserError(f"{folder.path} can't be resumed as another model: {described}. {ways}.")
    was = start.depends_on
    before = was.get("first_stage")
    if before != depends_on.get("first_stage") and before != whole():
        raise UserError(
            f"{folder.path} was trained on the latents of another first stage (hash {_hash(was)}, now "
            f"{_hash(depends_on)}), which this one can't decode. Restore the old one, or start again with "
            "overwrite=true or another name=."
        )
    if described:
        print(f"{folder.path}: changed since it was started: {described}", flush=True)
    if was.get("data") != depends_on.get("data"):
        print(f"{folder.path}: the data have changed; the order of the samples changes from here on", flush=True)
    return start


def _with_defaults(old: Any, new: Any) -> Any:
    """The config `old`, with options that its classes didn't have yet, but have in `new`, at their constructors'
    defaults."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old
    filled = {key: _with_defaults(value, new.get(key)) for key, value in old.items()}
    if "class" in old and old["class"] == new.get("class"):
        known = parameters(old["class"])
        for key in new:
            if key not in old and key in known and known[key].default is not known[key].empty:
                filled[key] = known[key].default
    return filled


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys of two configs whose values differ, with both values."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {} if _plain(old) == _plain(new) else {path: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        if path or key not in PLACES:
            found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) and not value:
        return None  # as in a signature, whose defaults can't be mappings
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> Any:
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        read = None
    if not isinstance(read, Mapping):
        raise UserError(f"{path} is damaged, so it is unknown what has changed: restore it, or use overwrite=true.")
    return read


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)


def _hash(depends_on: Mapping[str, str]) -> str:
    return depends_on.get("first_stage", "none")[:12]
