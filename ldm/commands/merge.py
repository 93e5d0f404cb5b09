"""Makes a new model from the weights of several models, or of one model with LoRAs.

    ldm merge run=A,B weights=W,V name=NAME [OPTION=VALUE ...]     # W A + V B, and so on for more
    ldm merge run=A,B,C difference=W name=NAME                     # A + W (B - C)
    ldm merge run=A lora=L:0.8 name=NAME                           # A with LoRAs in its weights

    ldm merge run=emoji,photos weights=0.7,0.3 name=both
    ldm merge run=emoji,photos weights=1,0 'blocks={mid_block: [0, 1], up_blocks: [0.5, 0.5]}' name=parts

    run         runs by name, or paths to anything that ldm.load opens, with commas between them
    weights     a number for each, which add up to 1; by default all the same
    difference  the factor of the second model's difference from the third
    blocks      other weights (or another difference) for parts of the network, by patterns of names as in targets=
                of a LoRA; the first that matches a weight counts
    lora        for one run: NAME:SCALE or [NAME:SCALE,...], merged into its weights
    name        of the new run
    overwrite   true replaces a merged run of that name
    runs_dir    the folder of the runs, by default runs

The models have to agree in everything but their weights: networks, first stage, conditions, parameterization,
preprocessing. The new run's model folder has the recipe as merge.json.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm import artifact
from ldm.commands.sample import loras
from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.common.registry import spec_of
from ldm.interop import hub
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.training.runs.folder import DONE, find_run

OPTIONS = ("run", "weights", "difference", "blocks", "lora", "name", "overwrite", "runs_dir")
RECIPE = "merge.json"
_NETWORK = "denoiser.network."
_FIXED = ("first_stage.", "latent_")  # parts of a model that have to be the same
Blocks = Mapping[str, Sequence[float]]  # the models' factors by pattern


def main(words: Sequence[str]) -> Path:
    """Merges the models that `words` name, KEY=VALUE each; returns the folder of the new run."""
    pairs = [word.partition("=")[::2] for word in words]
    options = dict(pairs)
    if twice := [key for key, value in pairs if options[key] != value]:
        raise UserError(f"merge: {twice[0]}= is given twice, with different values: give it once.")
    if unknown := [key for key in options if key not in OPTIONS]:
        raise UserError(f"merge has no option '{unknown[0]}'.{did_you_mean(unknown[0], OPTIONS)}")
    if not options.get("run") or not options.get("name"):
        raise UserError("merge needs run= and name=, as in `run=emoji,photos weights=0.7,0.3 name=both`.")
    runs_dir = options.get("runs_dir", "runs")
    to = Path(runs_dir) / "ldm" / options["name"]
    if to.exists() and options.get("overwrite", "").lower() != "true":
        raise UserError(f"{to} exists: give overwrite=true to replace it, or another name=.")
    if (to / "checkpoints").exists():
        raise UserError(
            f"{to} was trained, and its checkpoints would stay beside the merged model: give another name=."
        )
    paths = [find_run("ldm", run.strip(), runs_dir) for run in options["run"].strip("[]").split(",")]
    wanted = loras(options.get("lora"))
    if bool(wanted) != (len(paths) == 1):
        raise UserError("merge takes several runs, or one run and lora=: give run=A,B, or run=A lora=NAME.")
    if wanted and (given := [key for key in ("weights", "difference", "blocks") if options.get(key)]):
        raise UserError(f"{given[0]} is for several runs, but with lora= there is only one: leave it out.")
    factors, blocks = ([1.0], {}) if wanted else _factors(options, len(paths))
    models = [_open(path) for path in paths]
    merged = merge(models, factors, blocks, [hub.origin_of(path) or str(path) for path in paths])
    for name, scale in wanted:
        merged.load_lora(find_run("ldm", name, runs_dir), scale, name=name)
    recipe = recipe_of(merged, options, zip(paths, models, strict=True))
    if wanted:
        merged.merge_lora()
    _write(merged, recipe, to, like=paths[0])
    print(to)
    return to


def merge(
    models: Sequence[LatentDiffusion], factors: Sequence[float], blocks: Blocks, names: Sequence[str]
) -> LatentDiffusion:
    """The first of `models`, changed to have sum_i factors[i] W_i as its weights, with other factors for `blocks`.

    If one factor is 1 and all others are 0, that model is copied bit for bit; other sums are computed in float64
    and rounded once. Raises UserError, before any weight changes, for models that can't be merged. `names` are the
    models' names in messages.
    """
    first = models[0]
    for model, name in zip(models[1:], names[1:], strict=True):
        _check_alike(first, model, f"{names[0]} and {name}")
    states = [model.state_dict() for model in models]
    used: set[str] = set()
    made = {}
    for name in states[0]:
        pattern = next((p for p in blocks if _matches(name, p)), None)
        used |= {pattern} if pattern else set()
        made[name] = _sum([state[name] for state in states], blocks[pattern] if pattern else factors, name)
    if idle := [pattern for pattern in blocks if pattern not in used]:
        parts = {part for name in states[0] if name.startswith(_NETWORK) for part in name.split(".")[2:-1]}
        words = {part for part in parts if not part.isdigit()}
        raise UserError(f"blocks: no weight of the network matches '{idle[0]}'.{did_you_mean(idle[0], words)}")
    if bad := [name for name, tensor in made.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"the merged {bad[0]} isn't finite: give smaller factors.")
    with torch.no_grad():
        for name, tensor in made.items():
            states[0][name].copy_(tensor)
    return first


def recipe_of(model: Any, options: Mapping[str, str], given: Any) -> dict[str, Any]:
    """What was merged, as plain data: the options, and the hash of each model as it was loaded."""
    made: dict[str, Any] = {key: value for key, value in options.items() if key not in ("overwrite", "runs_dir")}
    made["models"] = [{"path": hub.origin_of(path) or str(path), "hash": one.base_hash} for path, one in given]
    if model.loras:
        made["loras"] = {
            name: {"scale": scale, "hash": artifact.model_hash(adapter)}
            for name, (adapter, scale) in model.adapters.items()
        }
    return made


def _factors(options: Mapping[str, str], n: int) -> tuple[list[float], dict[str, list[float]]]:
    """The models' factors, and those of each pattern of `blocks`."""
    is_difference = "difference" in options
    if is_difference and ("weights" in options or n != 3):
        raise UserError(f"difference= takes three runs A,B,C, for A + W (B - C), and no weights=; you gave {n} runs.")
    given = _blocks(options.get("blocks"))
    if is_difference:
        factor = _numbers(options["difference"], 1, "difference")[0]
        by_block = {p: _numbers(value, 1, f"blocks: {p}")[0] for p, value in given.items()}
        return [1.0, factor, -factor], {p: [1.0, w, -w] for p, w in by_block.items()}
    weights = _numbers(options["weights"], n, "weights") if options.get("weights") else [1 / n] * n
    blocks = {p: _numbers(value, n, f"blocks: {p}") for p, value in given.items()}
    for what, numbers in {"weights": weights, **{f"blocks: {p}": w for p, w in blocks.items()}}.items():
        if not math.isclose(sum(numbers), 1, abs_tol=1e-6):
            shown = ", ".join(f"{number:g}" for number in numbers)
            raise UserError(f"{what}={shown} add up to {sum(numbers):g}: give weights that add up to 1.")
    return weights, blocks


def _blocks(text: str | None) -> dict[str, Any]:
    try:
        given = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict):
        raise UserError(f"blocks={text}: give numbers by pattern, as in blocks='{{mid_block: [0.2, 0.8]}}'.")
    return {str(pattern): value for pattern, value in given.items()}


def _numbers(value: Any, n: int, what: str) -> list[float]:
    """The `n` finite numbers that text or YAML gives."""
    pieces = value.strip("[]").split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        numbers = [float(piece) for piece in pieces]
    except (TypeError, ValueError):
        raise UserError(f"{what}={value}: give numbers, with commas between them.") from None
    if len(numbers) != n or not all(map(math.isfinite, numbers)):
        raise UserError(f"{what}={value}: give {n} finite number{'s' * (n > 1)}, one for each model.")
    return numbers


def _open(path: Path) -> LatentDiffusion:
    """A model to merge, and its hash as `base_hash`."""
    model = load(path, precision="float32")
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"{path} holds a {type(model).__name__}: merge takes models of stage two.")
    if model.adapters:
        raise UserError(f"{path} is an adapter on a base: merge it into its base first, with run=BASE lora={path}.")
    model.base_hash = model.base_hash or artifact.model_hash(model)
    return model


def _check_alike(first: LatentDiffusion, other: LatentDiffusion, what: str) -> None:
    """Refuses two models that differ in anything but the weights of denoiser and conditioner."""
    if artifact.model_hash(first.first_stage) != artifact.model_hash(other.first_stage):
        raise UserError(f"{what} have different first stages, so their latents differ: fine-tune both from one base.")
    pairs = {
        "networks": (spec_of(first.denoiser.network), spec_of(other.denoiser.network)),
        "parameterizations": (spec_of(first.denoiser.parameterization), spec_of(other.denoiser.parameterization)),
        "conditions": (_without_dropping(spec_of(first.conditioner)), _without_dropping(spec_of(other.conditioner))),
        "kinds of preprocessing": (spec_of(first.preprocess), spec_of(other.preprocess)),
        "few-step students": (first.distilled or {}, other.distilled or {}),
    }
    for part, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(f"{what} have different {part} ({_difference(ours, theirs)}), and can't be merged.")
    states = first.state_dict(), other.state_dict()
    artifact.report_mismatch(*states, where=what)
    if any(not torch.equal(states[0][n], states[1][n]) for n in states[0] if n.startswith("latent_")):
        raise UserError(f"{what} whiten latents differently: fine-tune both from one base.")


def _without_dropping(spec: Any) -> Any:
    """A spec of conditions without the shares of dropped conditions, which matter in training only."""
    if isinstance(spec, Mapping):
        return {key: _without_dropping(value) for key, value in spec.items() if key != "drop_prob"}
    return [_without_dropping(one) for one in spec] if isinstance(spec, (list, tuple)) else spec


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    return "; ".join(f"{key} {str(ours.get(key))[:60]} and {str(theirs.get(key))[:60]}" for key in keys[:3])


def _matches(name: str, pattern: str) -> bool:
    if not name.startswith(_NETWORK):
        return False
    module = name.removeprefix(_NETWORK).rpartition(".")[0]
    return f".{pattern}." in f".{module}." or fnmatchcase(module, pattern)


def _sum(tensors: Sequence[Tensor], factors: Sequence[float], name: str) -> Tensor:
    """sum_i factors[i] tensors[i]. Parts that have to be the same, and whole numbers, are taken from the first
    model."""
    used = [(factor, tensor) for factor, tensor in zip(factors, tensors, strict=True) if factor != 0]
    if name.startswith(_FIXED) or not tensors[0].is_floating_point():
        return tensors[0]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for factor, tensor in used:
        total += factor * tensor.double()
    return total.to(tensors[0].dtype)


def _write(model: LatentDiffusion, recipe: Mapping[str, Any], to: Path, like: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    config = like / "config.yaml"
    if config.is_file():
        atomic_write(to / "config.yaml", config.read_text())
    artifact.save(model, to / "model")
    atomic_write(to / "model" / RECIPE, artifact.to_json(recipe).decode())
    atomic_write(to / DONE, f"merged from {recipe['run']}\n")
