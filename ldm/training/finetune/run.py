"""`train_ldm.py finetune=NAME base=RUN`: a run that goes on from a trained model."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from ldm.adapters import base_of
from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError
from ldm.common.registry import build, lookup, spec_of
from ldm.data.caches.captions import remember_captions
from ldm.data.storage.table import Table
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.training.finetune import kinds as finetune_kinds
from ldm.training.finetune.kind import Finetune
from ldm.training.finetune.prior import with_prior
from ldm.training.finetune.task import FinetuneTask
from ldm.training.ldm_run import latents, names_of, numbered, tell_classes
from ldm.training.runs import resume
from ldm.training.runs.folder import find_run
from ldm.training.trainer.callbacks import Pictures
from ldm.training.trainer.fit import (
    Clock,
    batches,
    begin,
    cache_of,
    device_for,
    fit,
    open_named,
    task_options,
    validated,
)

__all__ = ["finetune_kinds", "main", "precheck"]  # importing finetune_kinds makes its classes known


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Fine-tunes a base, and leaves a run whose model folder holds what `kind.saved` gives: an adapter, or a model."""
    clock = Clock()
    path = precheck(config)
    kind: Finetune = build(config["finetune"], "finetune")
    with open_named("ldm", f"{name_of(path)}-{kind.suffix}", config, job) as folder:
        if folder.finished:
            return folder.path
        model = open_base(path)
        source = build(as_the_base(config["data"], model.preprocess), "data")
        tables = kind.tables(source.tables(cache_of(config) / "data"))
        tables = numbered(tables, names_of(model.conditioner), "the base")
        check_preprocess(tables[0], model)
        kind.check(model, tables)
        device, cache = device_for(config), cache_of(config)
        tables = with_prior(tables, model, config.get("prior_path"), cache, config["seed"], device)
        base = base_of(model, path, folder.model)
        depends_on = {"data": tables[0].key, "first_stage": encoder_hash(model.first_stage), "base": base["hash"]}
        start = resume.check(folder, config, depends_on, whole=lambda: model_hash(model.first_stage))
        check_start(start, base)
        folder.save_config(config)
        remember_captions(model.conditioner, tables, cache, device)
        train, val, _ = latents(tables, model.first_stage, config)  # whitened as the base's were, not by their own
        torch.manual_seed(config["seed"])
        kind.prepare(model)
        task = (kind.task or FinetuneTask)(model, kind, base, depends_on=depends_on, **task_options(config))
        count = sum(p.numel() for p in task.trained.parameters() if p.requires_grad)
        print(f"{folder.path}: {len(train)} images, {len(val)} for validation; {count} parameters train", flush=True)
        tell_classes(model.conditioner)
        pixels = ("image",) if isinstance(train, Table) else ()
        needs = dict.fromkeys((*pixels, *model.conditioner.needs, *kind.needs))
        shown = config["samples"]
        draw = kind.pictures(tables[1], shown["n"], config["seed"])
        pictures = FromTheStart(folder, lambda task: draw(task.model()), 4, shown["every_n_steps"])
        read = kind.reader(model.conditioner.reader(config["seed"]), tables[0].preprocess)
        data = batches(train, val, tuple(needs), config, read)
        trainer = fit(task, data, folder, config, pictures, clock.started, start)
        if trainer.is_global_zero:
            folder.finish()
            print(f"{folder.path}: {trainer.global_step} steps in {clock}{validated(trainer, task)}", flush=True)
    return folder.path


def precheck(config: Mapping[str, Any]) -> Path:
    """Where the base is. Raises UserError if it isn't there, before any work."""
    if not config.get("base"):
        raise UserError("finetune needs a trained model to go on from: name its run by base=, as in base=emoji.")
    begin(config)
    return find_run("ldm", config["base"], config["runs_dir"])


def open_base(path: Path) -> LatentDiffusion:
    """The model to go on from, frozen."""
    model = load(path, precision="float32")
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"base={path} holds a {type(model).__name__}; name a run of train_ldm.py.")
    if model.adapters:
        raise UserError(
            f"base={path} is an adapter on another base: go on from that one, or make a model of the two by "
            "model.merge_lora() and ldm.save(model, FOLDER), and give base=FOLDER."
        )
    first_stage: Any = model.first_stage
    first_stage.preprocess = model.preprocess  # so its whole hash, of former caches, is that of stage one's run
    return model.requires_grad_(False)


def name_of(path: Path) -> str:
    """A base's name: that of its run."""
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.stem if path.is_file() else path.name


def as_the_base(data: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    """The data's config, with the base's size, channels and other preprocessing where it says nothing of them."""
    known = inspect.signature(lookup(data["class"]).__init__).parameters
    own = {k: v for k, v in vars_of(preprocess).items() if k in known}
    if "size" in known:
        square = preprocess.height == preprocess.width
        own["size"] = preprocess.height if square else [preprocess.height, preprocess.width]
    return own | {key: value for key, value in data.items() if value is not None or key not in own}


def vars_of(preprocess: Preprocess) -> dict[str, Any]:
    """What the base's preprocessing was told, without what wasn't."""
    return {k: v for k, v in spec_of(preprocess).items() if k not in ("class", "height", "width") and v is not None}


def check_preprocess(table: Table, model: LatentDiffusion) -> None:
    """Refuses images that are prepared otherwise than the base's."""
    own, given = vars(model.preprocess), vars(table.preprocess)
    keys = [k for k in given if not k.startswith("_") and own.get(k) != given[k]]
    if differing := ", ".join(f"{k} {own.get(k)} there, {given[k]} here" for k in keys):
        raise UserError(f"the base was trained on images prepared otherwise ({differing}): leave these to the base.")


def check_start(start: resume.Start, base: Mapping[str, str]) -> None:
    was = start.depends_on.get("base")
    if start.checkpoint and was != base["hash"]:
        raise UserError(
            f"the base isn't what it was when this run began (hash {(was or 'none')[:12]}, now {base['hash'][:12]}): "
            "bring it back, or start anew by overwrite=true or another name=."
        )


class FromTheStart(Pictures):
    """Pictures of step 0 too, to compare with."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0:
            self._write(trainer, pl_module)
