"""`train_ldm.py finetune=NAME base=RUN`: a run that starts from a trained model."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.adapters import base_of
from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError
from ldm.common.registry import build, lookup, spec_of
from ldm.data.balance import say_balance
from ldm.data.caches.captions import remember_captions, report_cut
from ldm.data.caption_changes import changing, prepare_captions
from ldm.data.storage.table import AUGMENT, Table
from ldm.images import Preprocess
from ldm.interop import hub
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.training import loss_mask
from ldm.training.finetune import kinds as finetune_kinds
from ldm.training.finetune.kind import Finetune
from ldm.training.finetune.prior import with_prior
from ldm.training.finetune.task import FinetuneTask
from ldm.training.ldm_run import check_best, class_lines, class_names, columns_for, latents, number_labels
from ldm.training.prepared import Clock, PreparedRun, complete, open_folder, task_options
from ldm.training.runs import resume
from ldm.training.runs.folder import RunFolder, find_run
from ldm.training.trainer.callbacks import SampleGrids
from ldm.training.trainer.fit import cache_of, check_environment, device_for
from ldm.training.trainer.measured import MeasureOf, measures_images

__all__ = ["finetune_kinds", "main", "precheck"]  # importing finetune_kinds makes its classes known


def main(config: dict[str, Any], job: str | None = None, measure_of: MeasureOf | None = None) -> Path:
    """Fine-tunes a base, and leaves a run whose model folder holds what `kind.saved` gives: an adapter or a model.

    `measure_of` makes the measure of generated images for validation, if the config wants one.
    """
    clock = Clock()
    path = precheck(config)
    kind: Finetune = build(config["finetune"], "finetune")
    if measures_images(config) and kind.needs:
        raise UserError(
            f"generated images can't be measured while {type(kind).__name__} trains, since they "
            f"also need {', '.join(kind.needs)}: leave out distance.n, and choose the best with "
            "checkpoint.best=val/loss."
        )
    if config.get("loss_mask") and kind.task is not None:
        raise UserError(
            f"loss_mask= can't be used with {type(kind).__name__}, whose loss isn't computed per pixel: leave it out."
        )
    if config.get("balance") and config.get("prior_path"):
        raise UserError("balance= can't be used with prior_path=, whose images have no such column: leave one out.")
    with open_folder("ldm", f"{run_name(path)}-{kind.suffix}", config, job) as folder:
        if not folder.finished:
            complete(prepare(config, folder, kind, path), folder, config, clock, measure_of=measure_of)
    return folder.path


def prepare(config: dict[str, Any], folder: RunFolder, kind: Finetune, path: Path) -> PreparedRun:
    """Prepares a run from the base at `path` and the data, and saves its config."""
    model = open_base_model(path)
    source = build(data_like_base(config["data"], model.preprocess), "data")
    tables = kind.tables(source.tables(cache_of(config) / "data"))
    tables = number_labels(tables, class_names(model.conditioner), "the base")
    check_preprocess(tables[0], model)
    check_augmentation(tables[0], model, config)
    kind.check(model, tables)
    loss_mask.check(config, tables)
    say_balance(config.get("balance"), tables[0])
    changes, tables = prepare_captions(tables, config)
    device, cache, seed = device_for(config), cache_of(config), config["seed"]
    prior: dict[str, Any] = {"path": config.get("prior_path"), "white": loss_mask.columns_of(config)}
    tables = with_prior(tables, model, **prior, cache=cache, seed=seed, device=device)
    base = base_of(model, path, folder.model)
    depends_on = {"data": tables[0].key, "first_stage": encoder_hash(model.first_stage), "base": base["hash"]}
    start = resume.check(folder, config, depends_on, whole=lambda: model_hash(model.first_stage))
    check_base_hash(start, base)
    folder.save_config(config)
    if kind.changes_text:
        report_cut(model.conditioner, tables)
    else:
        remember_captions(model.conditioner, tables, cache, device)
    train, val, _ = latents(
        tables, model.first_stage, config
    )  # whitened by the statistics of the base's latents, not their own
    torch.manual_seed(seed)
    kind.prepare(model)
    task = (kind.task or FinetuneTask)(model, kind, base, depends_on=depends_on, **task_options(config))
    count = sum(p.numel() for p in task.trained.parameters() if p.requires_grad)
    sample = kind.sample_function(tables[1], config["samples"]["n"], seed)
    every = config["samples"]["every_n_steps"]
    return PreparedRun(
        task,
        train,
        val,
        columns=columns_for(train, (*model.conditioner.needs, *kind.needs, *loss_mask.columns_of(config))),
        samples=SampleGrids(folder, lambda task: sample(task.model()), columns=4, every_n_steps=every, at_start=True),
        start=start,
        trains=f"{count} parameters train",
        notes=class_lines(model.conditioner),
        read=changing(kind.reader(model.conditioner.reader(seed), tables[0].preprocess), changes),
        tables=tables,
    )


def precheck(config: dict[str, Any]) -> Path:
    """The path of the base. Raises UserError if it doesn't exist, before any work."""
    if not config.get("base"):
        raise UserError("finetune needs a trained model to start from: name its run with base=, as in base=emoji.")
    check_best(config)
    check_environment(config)
    return find_run("ldm", config["base"], config["runs_dir"])


def open_base_model(path: Path) -> LatentDiffusion:
    """The frozen model to start from."""
    model = load(path, precision="float32")
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"base={path} holds a {type(model).__name__}; name a run of train_ldm.py.")
    if model.adapters:
        raise UserError(
            f"base={path} is an adapter on another base: start from that one, or merge the two with "
            "model.merge_lora() and ldm.save(model, FOLDER), and give base=FOLDER."
        )
    first_stage: Any = model.first_stage
    first_stage.preprocess = model.preprocess  # its hash is then that of the stage-one run, which earlier caches used
    return model.requires_grad_(False)


def run_name(path: Path) -> str:
    """The name of the run that a base belongs to; for another file or folder, its own name."""
    path = path if hub.origin_of(path) else path.resolve()
    return hub.name_of(path.parent if path.name == "model" else path)


def data_like_base(data: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    """The data's config, with options that it leaves open (size, channels and other preprocessing) taken from the
    base."""
    known = inspect.signature(lookup(data["class"]).__init__).parameters
    own = {key: value for key, value in _preprocessing_options(preprocess).items() if key in known}
    if "size" in known:
        square = preprocess.height == preprocess.width
        own["size"] = preprocess.height if square else [preprocess.height, preprocess.width]
    return own | {key: value for key, value in data.items() if value is not None or key not in own}


def _preprocessing_options(preprocess: Preprocess) -> dict[str, Any]:
    """The options with which the base's preprocessing was made, except its size."""
    options = spec_of(preprocess).items()
    return {key: value for key, value in options if key not in ("class", "height", "width") and value is not None}


def check_preprocess(table: Table, model: LatentDiffusion) -> None:
    """Raises UserError for images whose preprocessing differs from that of the base."""
    own, given = vars(model.preprocess), vars(table.preprocess)
    keys = [key for key in given if not key.startswith("_") and own.get(key) != given[key]]
    if keys:
        differing = ", ".join(f"{key} {own.get(key)} there, {given[key]} here" for key in keys)
        raise UserError(f"the base was trained on images prepared differently ({differing}): leave these options out.")


def check_augmentation(table: Table, model: LatentDiffusion, config: Mapping[str, Any]) -> None:
    """Raises UserError for augmentation that would leak into samples, since the base doesn't know its labels."""
    if AUGMENT not in table.columns:
        return
    if AUGMENT not in model.conditioner.needs:
        raise UserError(
            "data.augment=: the base wasn't trained with it, so augmentation would leak into its samples. Leave it "
            "out; data.flip=horizontal and data.zoom= work with any base."
        )
    if config.get("prior_path"):
        raise UserError("data.augment= can't be combined with prior_path=: leave one of them out.")


def check_base_hash(start: resume.Start, base: Mapping[str, str]) -> None:
    """Raises UserError if the base has changed since the run that is resumed was started."""
    was = start.depends_on.get("base")
    if start.checkpoint and was != base["hash"]:
        raise UserError(
            f"the base has changed since this run began (hash {(was or 'none')[:12]}, now {base['hash'][:12]}): "
            "restore it, or start again with overwrite=true or another name=."
        )
