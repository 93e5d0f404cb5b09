"""What a run shows while it trains: progress, and grids of samples."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.images import grid
from ldm.model.latent_space import finite
from ldm.training.runs.folder import RunFolder
from ldm.training.trainer.costs import Throughput, in_words
from ldm.training.trainer.sharded import is_sharded

log = logging.getLogger("ldm")


def progress() -> pl.Callback:
    """A bar on a terminal; a line now and then if the output goes to a file."""
    return Bar(refresh_rate=5) if sys.stderr.isatty() else Lines()


class Lines(pl.Callback):
    """A line every `seconds`, with the step, the figures that were logged last, and throughput."""

    def __init__(self, seconds: float = 15.0):
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts to measure the speed."""
        self._rate, self._last = Throughput(), time.monotonic()
        self._rate(trainer.datamodule.position)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Prints a line every `seconds` seconds."""
        if time.monotonic() - self._last < self.seconds or not trainer.is_global_zero:
            return
        self._last = time.monotonic()
        of = f"/{trainer.max_steps}" if trainer.max_steps and trainer.max_steps > 0 else ""
        rate = self._rate(trainer.datamodule.position)  # type: ignore[attr-defined]
        loss = f"  loss {pl_module.shown['loss']:.4f}" if "loss" in pl_module.shown else ""
        shown = in_words(pl_module.shown | pl_module.measured)
        more = "".join(f"  {name} {value}" for name, value in shown.items())
        print(f"step {trainer.global_step}{of}{loss}  {rate:.0f} samples/s{more}", flush=True)


class Bar(TQDMProgressBar):
    """Lightning's bar with the figures that were logged last, and throughput."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts to measure the speed."""
        super().on_train_start(trainer, pl_module)
        self._rate, self._shown = Throughput(), 0.0

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        """The figures shown after the bar: loss, speed, other figures and step."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if "loss" in pl_module.shown:
            metrics["loss"] = f"{pl_module.shown['loss']:.4f}"
        if (rate := self._rate(trainer.datamodule.position)) > 0:  # type: ignore[attr-defined]
            self._shown = rate
        metrics["samples/s"] = f"{self._shown:.0f}"
        return {**metrics, **in_words(pl_module.shown | pl_module.measured), "step": trainer.global_step}


class SampleGrids(pl.Callback):
    """Writes the images of `sample(task)` as a grid to samples/ and to the loggers: every N steps and at the end.

    The grid of a step is made when the next step begins, as `Checkpoints` saves: its average then includes the step,
    and if a signal stops the run there, the resumed run makes the grid.

    With `at_start` there is one before the first step too. `columns` is the number of images in a row.
    """

    def __init__(
        self,
        folder: RunFolder,
        sample: Callable[[Any], Tensor],
        columns: int,
        every_n_steps: int = 1000,
        at_start: bool = False,
    ):
        self.folder, self.sample, self.columns = folder, sample, columns
        self.every, self.at_start = every_n_steps, at_start

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes a grid before the first step, if `at_start`."""
        if self.at_start and trainer.global_step == 0:
            self._write(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Writes a grid every `every` steps, between two optimizer steps."""
        if not self.every or trainer.global_step == 0 or batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % self.every == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes a grid after the last step."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Any) -> None:
        path = self.folder.samples / f"step-{trainer.global_step:08d}.png"
        together = is_sharded(pl_module)  # then all processes sample, each with its part of the weights
        if not (together or trainer.is_global_zero):
            return
        if trainer.strategy.broadcast(path.exists()) if together else path.exists():
            return
        try:
            image = grid(finite(self.sample(pl_module)), self.columns)
        except UserError as error:  # samples are only looked at: the run goes on without them
            log.warning("no images at step %d: %s", trainer.global_step, error)
            return
        if not trainer.is_global_zero:
            return
        atomic_write(path, lambda file: image.save(file, "PNG"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(image.convert("RGB"))
                logger.experiment.add_image("samples", pixels, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [image], step=trainer.global_step)
