"""A run that is ready to train, and what every run does with it: train, finish the folder, report."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from ldm.data.datamodule import BatchModule, Gathers, Read, as_gathered
from ldm.data.storage.table import Table
from ldm.training.loss_mask import loss_mask_of
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.runs import best, resume
from ldm.training.runs.folder import RunFolder, open_run
from ldm.training.task import Task
from ldm.training.trainer.callbacks import SampleGrids
from ldm.training.trainer.fit import fit
from ldm.training.trainer.measured import Measured, MeasureOf, measures_images


@dataclass(frozen=True)
class PreparedRun:
    """What `complete` needs to train a run.

    `columns` are the columns of both tables that a batch holds, and `read` adds to them on the host. `samples` writes
    the grids, and training continues from `start`. `trains` describes what is trained, and `notes` are printed before
    training. `tables` are the images that generated ones may be measured against. `after` is called once the run is
    trained and saved; with `says_loss` the last line has the validation loss.
    """

    task: Task
    train: Gathers
    val: Gathers
    columns: tuple[str, ...]
    samples: SampleGrids
    start: resume.Start
    trains: str
    notes: tuple[str, ...] = ()
    read: Read = as_gathered
    tables: tuple[Table, Table] | None = None
    after: Callable[[pl.Trainer], None] = lambda trainer: None
    says_loss: bool = True


class Clock:
    """Wall clock since the run began, its start-up included."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self.started:.0f} s"


def complete(
    run: PreparedRun, folder: RunFolder, config: dict[str, Any], clock: Clock, *, measure_of: MeasureOf | None = None
) -> None:
    """Trains a prepared run to its end, marks its folder as finished, and prints the result. `measure_of` makes the
    measure of generated images for validation."""
    sizes = f"{_images(run.train)}, {len(run.val)} for validation"
    measured = [measure_of(run.tables, config)] if measure_of and run.tables and measures_images(config) else []
    for line in (f"{folder.path}: {sizes}; {run.trains}", *run.notes, *measured):
        print(line, flush=True)
    data = BatchModule(
        run.train,
        run.val,
        run.columns,
        batch_size=config["batch_size"],
        seed=config["seed"],
        read=run.read,
        balance=config.get("balance"),
        **config["loader"],
    )
    trainer = fit(
        run.task,
        data,
        folder,
        config,
        samples=run.samples,
        started=clock.started,
        start=run.start,
        more=[Measured(measure) for measure in measured],
    )
    if trainer.is_global_zero:
        run.after(trainer)
        folder.finish()
        loss = _validation_loss(trainer, run.task) if run.says_loss else ""
        print(f"{folder.path}: {trainer.global_step} steps in {clock}{loss}", flush=True)
        if chosen := best_of(trainer):
            print(f"{folder.path}: {chosen}", flush=True)


def best_of(trainer: pl.Trainer) -> best.Best | None:
    """The callback that chose the run's best model; None for a run that keeps its last one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, best.Best)), None)


def _images(train: Gathers) -> str:
    """'150 images', or '150 images in 16 variants'."""
    variants = getattr(getattr(train, "table", train), "variants", 1)
    return f"{len(train) // variants} images" + (f" in {variants} variants" if variants > 1 else "")


def _validation_loss(trainer: pl.Trainer, task: Task) -> str:
    """', validation loss 0.1234 (the mean of 512 images)', or empty if no image was validated."""
    loss = trainer.callback_metrics.get("val/loss")
    return "" if loss is None else f", validation loss {float(loss):.4f} (the mean of {task.validated} images)"


def open_folder(stage: str, default: str, config: Mapping[str, Any], job: str | None) -> RunFolder:
    """The run's folder, by the config's name or the default one; a job of a sweep has its own folder inside it."""
    name = config["name"] or default
    return open_run(
        stage,
        f"{name}/{job}" if job else name,
        resume=config["resume"],
        overwrite=config["overwrite"],
        runs_dir=config["runs_dir"],
        more=lambda folder: not best.is_over_in(folder, config["checkpoint"]) and resume.is_more(folder, config),
    )


def task_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Task` in a run's config. With a time limit, the number of steps isn't known yet."""
    optimizer = dict(config["optimizer"])
    betas, weight_decay = tuple(optimizer.pop("betas")), optimizer.pop("weight_decay")
    name = optimizer.pop("name", "adamw")
    steps = config["trainer"]["max_steps"] or -1
    total = None if config["trainer"].get("max_time") or steps < 0 else steps
    return {
        "learning_rate": LearningRate(**optimizer, total_steps=total),
        "optimizer": name,
        "betas": betas,
        "weight_decay": weight_decay,
        "ema_decay": config["ema"]["decay"],
        "power_lengths": [float(length) for length in config["ema"].get("lengths") or ()],
        "seed": config["seed"],
        "loss_mask": loss_mask_of(config),
        "log_every_n_steps": config["trainer"].get("log_every_n_steps") or 10,
    }


def parameters_line(**modules: Any) -> str:
    """'vae 1.60 M parameters, ...'"""
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return ", ".join(f"{name} {count / 1e6:.2f} M parameters" for name, count in counts.items())
