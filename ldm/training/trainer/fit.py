"""Lightning's Trainer, its callbacks and loggers, and the call that trains a run."""

import importlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ldm.common.devices import available, fast_products
from ldm.common.errors import UserError, did_you_mean
from ldm.common.ranks import local_rank
from ldm.data.datamodule import BatchModule
from ldm.networks.layers import laid_out
from ldm.training.averages.snapshots import Snapshots
from ldm.training.optimization import optimizers
from ldm.training.optimization.learning_rate import TimeBudget, parse_time
from ldm.training.runs import resume
from ldm.training.runs.best import Best
from ldm.training.runs.checkpoints import AtomicCheckpointIO, Checkpoints
from ldm.training.runs.folder import RunFolder
from ldm.training.runs.guards import FiniteGuard
from ldm.training.runs.resume import Start
from ldm.training.runs.signals import StopOnSignal, Stopped, continuing_command
from ldm.training.task import Task
from ldm.training.trainer import options as trainer_options
from ldm.training.trainer import sharded
from ldm.training.trainer.callbacks import SampleGrids, progress
from ldm.training.trainer.costs import Costs
from ldm.training.trainer.loggers import loggers
from ldm.training.trainer.own_callbacks import build_callbacks, callback_classes
from ldm.training.trainer.speed import compiler_for, precision_of, prepare


def fit(
    task: Task,
    data: BatchModule,
    folder: RunFolder,
    config: dict[str, Any],
    *,
    samples: SampleGrids,
    started: float,
    start: Start,
    more: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Trains from `start` to the end, and validates once more. `started` is the time at which the command began, and
    `more` are callbacks of this run.

    Raises SystemExit (143, 130, 138) where SIGTERM, Ctrl-C or SIGUSR1 stopped the run.
    """
    trainer = _build_trainer(folder, config, [samples, *more], started=started, start=start)
    fast_products(available(config["trainer"].get("accelerator") or "auto"))
    device = device_for(config)
    compiler = compiler_for(config, device)
    laid_out(task, device)
    prepare(task.trained, checkpointing=config.get("gradient_checkpointing", False), compiler=compiler)
    if start.checkpoint:
        trainer.print(f"resumed {folder.path} at step {start.step} (sample {start.position})", flush=True)
    if changed := resume.rescheduled(start, config, task.learning_rate):
        trainer.print(f"{folder.path}: {changed}", flush=True)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=start.checkpoint)
        trainer.validate(task, datamodule=data, verbose=False)
    except Stopped as stopped:
        report_stop(stopped, trainer, folder)
        sys.exit(stopped.exit_code)
    return trainer


def _build_trainer(
    folder: RunFolder, config: dict[str, Any], own: Sequence[pl.Callback], *, started: float, start: Start
) -> pl.Trainer:
    options = trainer_options.own(config["trainer"])
    max_time = options.pop("max_time", None)
    limit = parse_time(max_time) if max_time else None
    bars = [progress()] if options.pop("enable_progress_bar", True) else []
    saving = _saving(folder, config["checkpoint"], start)
    callbacks: list[pl.Callback] = [*bars, *saving, StopOnSignal()]
    callbacks += [FiniteGuard(folder, config["skip_bad_batches"]), *own]
    if config["ema"].get("lengths"):
        callbacks.append(Snapshots(folder.path / "ema", config["ema"].get("snapshots") or 64))
    callbacks += build_callbacks(config)
    callbacks.append(Costs())  # the last, since it counts operations from the start of a batch
    options["precision"] = precision_of(options.get("precision"), options.get("accelerator") or "auto")
    options["strategy"] = strategy_of(options.get("strategy") or "auto", config, options["precision"])
    callbacks.insert(0, TimeBudget(limit, started, used=start.used or 0.0, most=resume.steps_of(config)))
    if limit or start.step >= (resume.steps_of(config) or math.inf):
        options[
            "max_steps"
        ] = -1  # until the budget is known: with no steps at all, Lightning would skip the end of the run
    plugins: list[Any] = [AtomicCheckpointIO()]
    if options["precision"] == "16-mixed" and available(options.get("accelerator") or "auto").type == "cpu":
        del options["precision"]
        plugins.append(float16_on_cpu())
    if SLURMEnvironment.detect():  # Lightning's own requeueing saves elsewhere: SIGTERM and resume=true do it here
        plugins.append(SLURMEnvironment(auto_requeue=False))
    quieten()
    try:
        return pl.Trainer(
            **options,
            **trainer_options.FIXED,
            callbacks=callbacks,
            logger=loggers(config["logger"], folder, start.step),
            plugins=plugins,
            default_root_dir=str(folder.path),
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"Lightning's Trainer refuses the trainer.X= options: {error}") from error


def _saving(folder: RunFolder, options: Mapping[str, Any], start: Start) -> list[pl.Callback]:
    """The callbacks that save, and that choose the best model if one is wanted."""
    kept = {key: value for key, value in options.items() if key not in ("best", "mode", "patience")}
    if not options.get("best"):
        return [Checkpoints(folder, **kept, begins=start.checkpoint)]
    best = Best(folder, options["best"], options.get("mode"), options.get("patience"))
    return [best, Checkpoints(folder, **kept, begins=start.checkpoint, best=best)]  # which reads what `best` decides


def float16_on_cpu() -> MixedPrecision:
    """Float16 on a CPU: 16-mixed itself, which Lightning would replace by bf16-mixed there."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


STRATEGIES = ("auto", "ddp", sharded.NAME)


def strategy_of(name: str, config: Mapping[str, Any], precision: Any) -> Any:
    """Lightning's strategy of that name; for fsdp this package's own, which spreads the averages too."""
    if name == sharded.NAME:
        sharded.check(config, precision)
        return sharded.FullySharded()
    if name != "auto" and name != "single_device" and not name.startswith("ddp"):
        raise UserError(f"trainer.strategy={name} isn't known here.{did_you_mean(name, STRATEGIES)}")
    return name


def report_stop(stopped: Stopped, trainer: pl.Trainer, folder: RunFolder) -> None:
    """Prints where the run stands and the command that continues it."""
    if not trainer.is_global_zero:
        return
    saved = folder.newest_checkpoint()
    where = f"saved {saved}" if saved else "before the first step was done"
    print(f"stopped by {stopped}: {where}. To continue: {continuing_command()}", file=sys.stderr, flush=True)


def quieten() -> None:
    """Silences messages that Lightning prints at every start and no user needs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in (
        "Found .* in eval mode",
        ".*isinstance.treespec, LeafSpec",
        ".*does not have many workers",
        ".*sync_dist=True",
    ):
        warnings.filterwarnings("ignore", words)


def check_environment(config: Mapping[str, Any]) -> None:
    """Imports the user's own modules. Raises UserError, before any work, for a callback, a precision, a package or a
    compiler that isn't there."""
    import_modules(config)
    callback_classes(config)
    optimizers.check_name(config["optimizer"].get("name", "adamw"))
    precision_of(config["trainer"].get("precision"))
    compiler_for(config, device_for(config))


def import_modules(config: Mapping[str, Any]) -> None:
    """Imports the user's own modules, whose registered classes the config may name."""
    for name in config.get("modules") or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"modules: {name} can't be imported ({error}); is it on PYTHONPATH?") from None


def device_for(config: Mapping[str, Any]) -> torch.device:
    """The device that the Trainer will use in this process, for the work before training."""
    options, number = config["trainer"], local_rank()
    devices = options.get("devices")
    if isinstance(devices, str) and "," in devices:  # Lightning's other form of a list, "2,3"
        devices = [int(part) for part in devices.split(",") if part.strip()]
    if isinstance(devices, list) and devices:
        number = devices[number % len(devices)]
    return available(options.get("accelerator") or "auto", number)


def cache_of(config: Mapping[str, Any]) -> Path:
    """The folder of caches: `cache_dir`, where ~ is the user's home."""
    return Path(os.path.expanduser(config["cache_dir"]))
