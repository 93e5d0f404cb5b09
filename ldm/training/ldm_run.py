"""`train_ldm.py`: one run of stage two."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import build, check, lookup, spec_of
from ldm.conditioning import Augmentation, ClassLabel, Conditioner, classes_line
from ldm.data.balance import say_balance
from ldm.data.caches.captions import remember_captions
from ldm.data.caches.labels import check_labelled, numbered_as
from ldm.data.caches.latents import cached_latents
from ldm.data.caption_changes import changing, prepare_captions
from ldm.data.datamodule import Gathers
from ldm.data.storage.table import AUGMENT, FRAME, Table
from ldm.diffusion import Denoiser
from ldm.model.loading import load
from ldm.networks import Autoencoder, Identity
from ldm.training import loss_mask
from ldm.training.auto.settle import settle_network
from ldm.training.ldm_task import DiffusionTask
from ldm.training.prepared import Clock, PreparedRun, complete, open_folder, parameters_line, task_options
from ldm.training.runs import best, resume
from ldm.training.runs.folder import RunFolder, find_run
from ldm.training.trainer.callbacks import SampleGrids
from ldm.training.trainer.fit import cache_of, check_environment, device_for
from ldm.training.trainer.measured import FIGURES, MeasureOf, settle_distance
from ldm.training.vae_run import check_images
from ldm.training.whitening import WHITENING, file_whitening

FirstStage = Autoencoder | Identity
Tables = tuple[Table, Table]
LOGGED = ("val/loss", *(f"val/loss_q{i}" for i in range(1, 5)), *FIGURES)  # in each validation


def main(config: dict[str, Any], job: str | None = None, measure_of: MeasureOf | None = None) -> Path:
    """Trains a diffusion model on the latents of a first stage and leaves runs/ldm/NAME with the whole model.

    `measure_of` makes the measure of generated images for validation, if the config wants one.
    """
    clock = Clock()
    check_environment(config)
    source = build(config["data"], "data")
    first_stage_path = precheck(config)
    with open_folder("ldm", source.name, config, job) as folder:
        if not folder.finished:
            run = prepare(config, folder, source, first_stage_path)
            complete(run, folder, config, clock, measure_of=measure_of)
    return folder.path


def prepare(config: dict[str, Any], folder: RunFolder, source: Any, first_stage_path: Path | None) -> PreparedRun:
    """Prepares a run from the data to the task: replaces `auto` in `config`, and saves it."""
    start = resume.start_of(folder)
    whose = f"{folder.path}, which is still training,"
    tables = number_labels(source.tables(cache_of(config) / "data"), start.classes, whose)
    check_labelled(tables[0], start.classes, whose)
    loss_mask.check(config, tables)
    say_balance(config.get("balance"), tables[0])
    changes, tables = prepare_captions(tables, config)
    first_stage = open_first_stage(first_stage_path, tables[0], bool(config["first_stage"]))
    torch.manual_seed(config["seed"])
    conditioner = build_conditioner(config["conditioner"], source.default_condition, tables[0], first_stage)
    height, width = tables[0].images.shape[2:]
    settle_network(
        config,
        resume.recorded(folder, start),
        latent_size=(height // first_stage.factor, width // first_stage.factor),
        inputs=network_inputs(first_stage, conditioner),
        images=tables[0].originals,
    )
    denoiser = build_denoiser(config, first_stage, conditioner)
    depends_on = {"data": tables[0].key, "first_stage": encoder_hash(first_stage)}
    start = resume.check(folder, config, depends_on, start, whole=lambda: model_hash(first_stage))
    folder.save_config(config)
    remember_captions(conditioner, tables, cache_of(config), device_for(config))
    train, val, whitening = latents(tables, first_stage, config)
    task = DiffusionTask(
        first_stage,
        denoiser,
        conditioner,
        preprocess=tables[0].preprocess,
        whitening=whitening or (torch.zeros(first_stage.latent_channels), torch.ones(first_stage.latent_channels)),
        sampling=dict(config["diffusion"]["sampling"]),
        depends_on=depends_on,
        **task_options(config),
    )
    sample = sample_function(conditioner, tables[1], config)
    return PreparedRun(
        task,
        train,
        val,
        columns=columns_for(train, (*conditioner.needs, *loss_mask.columns_of(config))),
        samples=SampleGrids(folder, sample, columns=4, every_n_steps=config["samples"]["every_n_steps"]),
        start=start,
        trains=parameters_line(first_stage=first_stage, network=denoiser.network, conditioner=conditioner),
        notes=class_lines(conditioner),
        read=changing(conditioner.reader(config["seed"]), changes),
        tables=tables,
    )


def columns_for(train: Gathers, needs: Iterable[str]) -> tuple[str, ...]:
    """The columns of a batch: what conditions need, and the images themselves where no latents are cached."""
    images = ("image",) if isinstance(train, Table) else ()
    return tuple(dict.fromkeys((*images, *needs)))


def precheck(config: dict[str, Any]) -> Path | None:
    """The path of the first stage; None for pixels. Raises UserError if it doesn't exist, before any work."""
    if config.get("base"):
        raise UserError(
            "base= is the model that a fine-tuning starts from: choose its kind with finetune=lora, full, ..."
        )
    whitening = config.get("whitening", "channels")
    if whitening not in (*WHITENING, "file"):
        raise UserError(f"whitening={whitening} is unknown.{did_you_mean(str(whitening), [*WHITENING, 'file'])}")
    check_best(config)
    named = config["first_stage"]
    if named == "identity":
        return None
    check_environment(config)
    name = named or build(config["data"], "data").name
    try:
        return find_run("vae", name, config["runs_dir"])
    except UserError as error:
        if named:
            raise
        raise UserError(
            f"{error} Or name one with first_stage=, or train on pixels with first_stage=identity."
        ) from None


def check_best(config: dict[str, Any]) -> None:
    """Raises UserError if the best model can't be chosen as the config says. Fills in the options that choosing it
    needs."""
    best.check(config, LOGGED)
    settle_distance(config)


def open_first_stage(path: Path | None, table: Table, named: bool = True) -> FirstStage:
    """The frozen first stage, checked against the data that it is to encode.

    One trained with other preprocessing is used only if the user `named` it, not if it was found by the data's name.
    """
    channels = table.preprocess.channels
    if path is None:
        return Identity(channels)
    vae = load(path, precision="float32")
    if not isinstance(vae, Autoencoder):
        raise UserError(f"first_stage={path} isn't an autoencoder; name a run of train_vae.py.")
    if vae.in_channels != channels:
        raise UserError(
            f"first_stage={path} takes {vae.in_channels} channels, the data has {channels}; train another one."
        )
    check_images(vae, table)
    own: Any = spec_of(vae.preprocess) if hasattr(vae, "preprocess") else None
    given = spec_of(table.preprocess)
    if own and own != given and not named:
        differing = ", ".join(f"{k} {own[k]} there, {given[k]} here" for k in own if own[k] != given.get(k))
        raise UserError(
            f"{path} was trained on images prepared differently ({differing}): give first_stage={path.name} to use it "
            "anyway, or train another one."
        )
    return vae


def build_conditioner(
    config: Mapping[str, Any], default: str | None, table: Table, first_stage: FirstStage
) -> Conditioner:
    """The conditions that the config names, or with `auto` those that the data has; their arguments come from the data
    and the first stage. Labels of augmentation are always a condition, without which it would leak into samples."""
    chosen = {name: spec for name, spec in config.items() if name != "auto"}
    if config.get("auto") and default and not chosen:
        chosen = {default: {"class": {"text": "Text", "label": "ClassLabel"}[default]}}
    parts = {}
    for name, spec in chosen.items():
        where = f"conditioner.{name}"
        check(spec, where)
        part = lookup(spec["class"])
        _check_columns(where, part.sources or (part.column,), table)
        parts[name] = build(spec, where, **part.derive(table, spec), **part.derive_latent(first_stage, spec))
        _check_columns(where, parts[name].needs, table)
    if AUGMENT in table.columns and not any(part.column == AUGMENT for part in parts.values()):
        parts[AUGMENT] = build({"class": "Augmentation"}, "conditioner.augment", **Augmentation.derive(table, {}))
    return Conditioner(parts)


def _check_columns(where: str, keys: tuple[str, ...], table: Table) -> None:
    for key in keys:
        if key == FRAME:
            table.check_frames(where)
        if not table.gives(key):
            known = ", ".join(table.columns) or "images alone"
            raise UserError(f"{where} reads '{key}', which the data doesn't have; it has {known}.")


def number_labels(tables: Tables, names: Sequence[str], whose: str) -> Tables:
    """Both tables with their labels as numbers of `names`: see `numbered_as`."""
    return numbered_as(tables[0], names, whose), numbered_as(tables[1], names, whose)


def class_names(conditioner: Conditioner) -> Sequence[str]:
    """The names of the classes that a model was trained on, in the order of their numbers; () without labels."""
    for part in conditioner.parts.values():
        if isinstance(part, ClassLabel):
            return part.names
    return ()


def class_lines(conditioner: Conditioner) -> tuple[str, ...]:
    """A line for each condition of class labels, with its classes."""
    labels = [part for part in conditioner.parts.values() if isinstance(part, ClassLabel)]
    return tuple(f"labels: {classes_line(part.table)}" for part in labels)


def network_inputs(first_stage: FirstStage, conditioner: Conditioner) -> dict[str, Any]:
    """The arguments with which a network is built in addition to its spec: the latents' channels and the conditions'
    sizes."""
    return {
        "in_channels": first_stage.latent_channels,
        "context_dim": conditioner.token_dim,
        "vector_dim": conditioner.vector_dim,
        "concat_channels": conditioner.concat_channels,
    }


def build_denoiser(config: Mapping[str, Any], first_stage: FirstStage, conditioner: Conditioner) -> Denoiser:
    """The network, with sizes from the latents and the conditions, and its parameterization and loss."""
    network = build(config["network"], "network", **network_inputs(first_stage, conditioner))
    options = {key: value for key, value in config["diffusion"].items() if key != "sampling"}
    built = {k: build(v, f"diffusion.{k}") if isinstance(v, Mapping) else v for k, v in options.items()}
    return Denoiser(network, built.pop("parameterization"), **built)


def latents(
    tables: Tables, first_stage: FirstStage, config: Mapping[str, Any]
) -> tuple[Gathers, Gathers, tuple[Tensor, Tensor] | None]:
    """Training and validation data as stage two reads them, and the latents' mean and std per channel.

    Without a first stage the data are the images, and the statistics None. With latents=online the data are the images
    too, and the cache only gives the statistics.
    """
    if isinstance(first_stage, Identity):
        return *tables, None
    chosen = config.get("whitening", "channels")
    from_file = file_whitening(first_stage) if chosen == "file" else None
    root, device, dtype = cache_of(config), device_for(config), config.get("latents_dtype", "float32")
    train, val = (cached_latents(table, first_stage, root, dtype=dtype, device=device) for table in tables)
    whitening = from_file or WHITENING[chosen](train.channel_mean, train.channel_std)
    if config["latents"] == "online":
        return *tables, whitening
    if train.reused and val.reused:
        print(f"latents of {len(train) + len(val)} images: the cache is reused, and nothing is encoded", flush=True)
    return train, val, whitening


def sample_function(
    conditioner: Conditioner, val: Table, config: Mapping[str, Any]
) -> Callable[[DiffusionTask], Tensor]:
    """A function of the task that generates images of the first validation conditions, always from the same noise."""
    n = config["samples"]["n"]
    rows = np.arange(min(n, len(val)))
    conditions = conditioner.examples(val.batch(rows, conditioner.needs), config["seed"])
    usual_steps = config["diffusion"]["sampling"]["steps"]
    steps = min(usual_steps, 50)  # these samples are only looked at, not measured
    options = {"spacing": None} if steps < usual_steps else {}

    def sample(task: DiffusionTask) -> Tensor:
        """Images of the average model, (N, C, H, W) in [-1, 1] on the CPU."""
        each = 1 if conditions else n
        return task.model().generate_for(conditions, each, seed=config["seed"], steps=steps, **options).cpu()

    return sample
