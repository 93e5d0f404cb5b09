"""What a resumed run must have in common with the one that it goes on with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ldm.errors import UserError
from ldm.training.run import RunFolder

# Options that only say what to do with the folder.
PLACES = ("resume", "overwrite", "name", "runs_dir", "cache_dir")
# Options that shape the weights, or what they mean.
ARCHITECTURE = (
    *("vae", "network", "conditioner", "diffusion.parameterization", "diffusion.weighting.class", "finetune"),
    *("optimizer.name", "ema.lengths", "loss.adversarial", "loss.critic_channels", "loss.critic_layers"),
)


# What runs did whose config has no such option yet.
IMPLIED = {"latents_dtype": "float32"}


class Start(NamedTuple):
    """Where a run begins: at step 0, or at that of its newest good checkpoint."""

    checkpoint: Path | None
    step: int
    position: int
    depends_on: dict[str, str]
    classes: tuple[str, ...] = ()  # by their numbers, of a model that is conditioned on them


def start_of(folder: RunFolder) -> Start:
    """Reads no weights: the file is mapped."""
    path = folder.newest_checkpoint()
    if path is None:
        return Start(None, 0, 0, {})
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    position, classes = saved["BatchModule"]["position"], _classes(saved.get("ldm_model", {}))
    return Start(path, saved["global_step"], position, saved.get("ldm_depends_on", {}), classes)


def _classes(spec: Any) -> tuple[str, ...]:
    """The names of the classes in a model's spec, wherever its ClassLabel is."""
    if not isinstance(spec, Mapping):
        return ()
    if spec.get("class") == "ClassLabel":
        return tuple(spec.get("names") or ())
    return next((found for inner in spec.values() if (found := _classes(inner))), ())


def check(
    folder: RunFolder, config: Mapping[str, Any], depends_on: Mapping[str, str], start: Start | None = None
) -> Start:
    """Where the run begins. Says what changed since the run was started, and refuses what would make it another model.

    `depends_on` names by hash what the weights stand on, `first_stage`, and the `data`, whose change is only said: the
    order of the samples is then another from here on. `start` is what `start_of` gave, where that is known.
    """
    start = start or start_of(folder)
    if start.checkpoint is None:
        return start
    implied = {key: value for key, value in IMPLIED.items() if key in config}
    changed = differences(implied | dict(_read(folder.config)), config)
    described = "; ".join(f"{key} was {_show(old)}, is {_show(new)}" for key, (old, new) in changed.items())
    ways = "Give the old values, or start anew by overwrite=true or another name="
    if any(_within(key, ARCHITECTURE) for key in changed):
        raise UserError(f"{folder.path} can't be resumed as another model: {described}. {ways}.")
    was = start.depends_on
    if was.get("first_stage") != depends_on.get("first_stage"):
        raise UserError(
            f"{folder.path} was trained on the latents of another first stage (hash {_hash(was)}, now "
            f"{_hash(depends_on)}), which this one can't decode. Bring the old one back, or start anew by "
            "overwrite=true or another name=."
        )
    if described:
        print(f"{folder.path}: changed since it was started: {described}", flush=True)
    if was.get("data") != depends_on.get("data"):
        print(f"{folder.path}: the data have changed; samples come in another order from here on", flush=True)
    return start


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
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> Any:
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        read = None
    if not isinstance(read, Mapping):
        raise UserError(f"{path} is damaged, so what changed can't be told: restore it, or take overwrite=true.")
    return read


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)


def _hash(depends_on: Mapping[str, str]) -> str:
    return depends_on.get("first_stage", "none")[:12]
