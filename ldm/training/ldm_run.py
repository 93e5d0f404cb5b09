"""`train_ldm.py`: one run of stage two."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import build, check, lookup, spec_of
from ldm.conditioning import ClassLabel, Conditioner, classes_line
from ldm.data.caches.captions import remember_captions
from ldm.data.caches.labels import check_labelled, numbered_as
from ldm.data.caches.latents import cached_latents
from ldm.data.datamodule import Gathers
from ldm.data.storage.table import FRAME, Table
from ldm.diffusion import Denoiser
from ldm.model.loading import load
from ldm.networks import AutoencoderKL, Identity
from ldm.training import auto
from ldm.training.ldm_task import DiffusionTask
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
    parameters_line,
    task_options,
    validated,
)
from ldm.training.vae_run import check as check_images

FirstStage = AutoencoderKL | Identity
Tables = tuple[Table, Table]


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Trains a diffusion model on the latents of a first stage and leaves runs/ldm/NAME with the whole model."""
    clock = Clock()
    begin(config)
    source = build(config["data"], "data")
    first_stage_path = precheck(config)
    with open_named("ldm", source.name, config, job) as folder:
        if folder.finished:
            return folder.path
        start = resume.start_of(folder)
        whose = f"{folder.path}, which goes on,"
        tables = numbered(source.tables(cache_of(config) / "data"), start.classes, whose)
        check_labelled(tables[0], start.classes, whose)
        first_stage = open_first_stage(first_stage_path, tables[0], bool(config["first_stage"]))
        torch.manual_seed(config["seed"])
        conditioner = build_conditioner(config["conditioner"], source.default_condition, tables[0], first_stage)
        settle_network(config, resume.recorded(folder, start), first_stage, conditioner, tables[0])
        denoiser = build_denoiser(config, first_stage, conditioner)
        depends_on = {"data": tables[0].key, "first_stage": encoder_hash(first_stage)}
        start = resume.check(folder, config, depends_on, start, lambda: model_hash(first_stage))
        folder.save_config(config)
        remember_captions(conditioner, tables, cache_of(config), device_for(config))
        train, val, whitening = latents(tables, first_stage, config)
        about = parameters_line(first_stage=first_stage, network=denoiser.network, conditioner=conditioner)
        print(f"{folder.path}: {len(train)} images, {len(val)} for validation; {about}", flush=True)
        tell_classes(conditioner)
        task = DiffusionTask(
            first_stage,
            denoiser,
            conditioner,
            tables[0].preprocess,
            whitening or (torch.zeros(first_stage.latent_channels), torch.ones(first_stage.latent_channels)),
            dict(config["diffusion"]["sampling"]),
            depends_on=depends_on,
            **task_options(config),
        )
        needs = tuple(dict.fromkeys((*(("image",) if isinstance(train, Table) else ()), *conditioner.needs)))
        shown = config["samples"]
        pictures = Pictures(folder, sampler(conditioner, tables[1], shown["n"], config), 4, shown["every_n_steps"])
        data = batches(train, val, needs, config, conditioner.reader(config["seed"]))
        trainer = fit(task, data, folder, config, pictures, clock.started, start)
        if trainer.is_global_zero:
            folder.finish()
            print(f"{folder.path}: {trainer.global_step} steps in {clock}{validated(trainer, task)}", flush=True)
    return folder.path


def precheck(config: Mapping[str, Any]) -> Path | None:
    """Where the first stage is; None for pixels. Raises UserError if it isn't there, before any work."""
    if config.get("base"):
        raise UserError("base= is what a fine-tuning goes on from: say which by finetune=lora, full, ...")
    if (chosen := config.get("whitening", "channels")) not in (*WHITENING, "file"):
        raise UserError(f"whitening={chosen} is unknown.{did_you_mean(str(chosen), [*WHITENING, 'file'])}")
    wanted = config["first_stage"]
    if wanted == "identity":
        return None
    begin(config)
    name = wanted or build(config["data"], "data").name
    try:
        return find_run("vae", name, config["runs_dir"])
    except UserError as error:
        if wanted:
            raise
        raise UserError(f"{error} Or name one by first_stage=, or train on pixels by first_stage=identity.") from None


def open_first_stage(path: Path | None, table: Table, named: bool = True) -> FirstStage:
    """The frozen first stage, checked against the data that it shall encode.

    One of other preprocessing is taken only if it was `named`, not because the data has its name.
    """
    channels = table.preprocess.channels
    if path is None:
        return Identity(channels)
    vae = load(path, precision="float32")
    if not isinstance(vae, AutoencoderKL):
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
            f"{path} was trained on images prepared otherwise ({differing}): name it by first_stage={path.name} if you "
            "mean it, or train another one."
        )
    return vae


def build_conditioner(
    config: Mapping[str, Any], default: str | None, table: Table, first_stage: FirstStage
) -> Conditioner:
    """The conditions that the config names, or with `auto` what the data has; what they need is read off the data and
    the first stage."""
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
    return Conditioner(parts)


def _check_columns(where: str, keys: tuple[str, ...], table: Table) -> None:
    for key in keys:
        if key == FRAME:
            table.check_frames(where)
        if not table.gives(key):
            known = ", ".join(table.columns) or "images alone"
            raise UserError(f"{where} reads '{key}', which the data doesn't have; it has {known}.")


def numbered(tables: Tables, names: Sequence[str], whose: str) -> Tables:
    """Both tables with their labels as numbers of `names`: see `numbered_as`."""
    return numbered_as(tables[0], names, whose), numbered_as(tables[1], names, whose)


def names_of(conditioner: Conditioner) -> Sequence[str]:
    """The classes that a model was trained on, by their numbers."""
    return next((part.names for part in conditioner.parts.values() if isinstance(part, ClassLabel)), ())


def tell_classes(conditioner: Conditioner) -> None:
    for part in conditioner.parts.values():
        if isinstance(part, ClassLabel):
            print(f"labels: {classes_line(part.table)}", flush=True)


def settle_network(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    first_stage: FirstStage,
    conditioner: Conditioner,
    table: Table,
) -> None:
    """Sizes in the place of network=auto, batch_size=auto and optimizer.lr=auto: see `ldm.training.auto`."""
    height, width = (side // first_stage.factor for side in table.images.shape[2:])
    auto.settle_network(config, recorded, (height, width), inputs_of(first_stage, conditioner), len(table))


def inputs_of(first_stage: FirstStage, conditioner: Conditioner) -> dict[str, Any]:
    """What a network is built for: the latents' channels, and the conditions' sizes."""
    return {
        "in_channels": first_stage.latent_channels,
        "context_dim": conditioner.token_dim,
        "vector_dim": conditioner.vector_dim,
        "concat_channels": conditioner.concat_channels,
    }


def build_denoiser(config: Mapping[str, Any], first_stage: FirstStage, conditioner: Conditioner) -> Denoiser:
    """The network, sized by what it is to denoise and by its conditions, with its parameterization and loss."""
    network = build(config["network"], "network", **inputs_of(first_stage, conditioner))
    options = {key: value for key, value in config["diffusion"].items() if key != "sampling"}
    built = {k: build(v, f"diffusion.{k}") if isinstance(v, Mapping) else v for k, v in options.items()}
    return Denoiser(network, built.pop("parameterization"), **built)


def one_scale(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """LDM's scale factor: all latents are divided by the std of all of them, and none is shifted (Rombach et al. 2022,
    appendix G)."""
    return torch.zeros_like(mean), (std.square().mean() + mean.var(correction=0)).sqrt().expand_as(std).clone()


WHITENING: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "channels": lambda mean, std: (mean, std),
    "scalar": one_scale,
}


def stated(first_stage: Any) -> tuple[Tensor, Tensor]:
    """Mean and std by channel that the autoencoder's file of diffusers says: z' = (z - shift) * scale."""
    if first_stage.scaling is None:
        raise UserError("whitening=file: the first stage isn't a folder of diffusers, which says it: use channels.")
    mean, std = first_stage.scaling
    return torch.tensor(mean), torch.tensor(std)


def latents(
    tables: Tables, first_stage: FirstStage, config: Mapping[str, Any]
) -> tuple[Gathers, Gathers, tuple[Tensor, Tensor] | None]:
    """Training and validation data as stage two reads them, and the latents' mean and std; on pixels the images, and
    None.

    With latents=online the images too, and the cache serves the statistics alone.
    """
    if isinstance(first_stage, Identity):
        return *tables, None
    chosen = config.get("whitening", "channels")
    said = stated(first_stage) if chosen == "file" else None
    root, device, dtype = cache_of(config), device_for(config), config.get("latents_dtype", "float32")
    train, val = (cached_latents(table, first_stage, root, dtype=dtype, device=device) for table in tables)
    whitening = said or WHITENING[chosen](train.channel_mean, train.channel_std)
    if config["latents"] == "online":
        return *tables, whitening
    if train.reused and val.reused:
        print(f"latents of {len(train) + len(val)} images: the cache is reused, nothing is encoded", flush=True)
    return train, val, whitening


def sampler(
    conditioner: Conditioner, val: Table, n: int, config: Mapping[str, Any]
) -> Callable[[DiffusionTask], Tensor]:
    """A function of the task that draws `n` pictures of the first validation conditions, always from the same noise."""
    rows = np.arange(min(n, len(val)))
    batch = val.batch(rows, conditioner.needs)
    given = conditioner.examples(batch, config["seed"])
    steps = min(config["diffusion"]["sampling"]["steps"], 50)  # the grid is a look, not a measurement

    def draw(task: DiffusionTask) -> Tensor:
        spacing = {"spacing": None} if steps < config["diffusion"]["sampling"]["steps"] else {}
        return task.model().draw(given, 1 if given else n, seed=config["seed"], steps=steps, **spacing).cpu()

    return draw
