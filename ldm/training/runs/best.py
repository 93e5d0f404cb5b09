"""The best model of a run, by a figure of validation, and the end of a run that no longer gets better."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.common.ranks import rank
from ldm.training.runs.folder import RunFolder

FILE = "best.json"
MODES = ("min", "max")
HIGHER_IS_BETTER = ("psnr", "ssim", "accuracy", "precision", "recall")


class Best(pl.Callback):
    """Compares a figure of each validation with the best one so far, and stops the run after `patience` in a row that
    aren't better.

    All that it knows is in best.json: the figure at each step that was validated. A run that is resumed at a step reads
    the file up to that step, and so decides as an uninterrupted run would.
    """

    def __init__(self, folder: RunFolder, figure: str, mode: str | None = None, patience: int | None = None):
        self.path, self.figure, self.patience = folder.path / FILE, figure, patience
        self.mode = mode or mode_of(figure)
        self.values: dict[int, float] = {}  # by step

    @property
    def step(self) -> int | None:
        """The step of the best model, the first if several are equal; None before the first validation."""
        return best_step(self.values, self.mode)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Reads what the run knew at the step that it is resumed at."""
        read = values_in(self.path, self.figure, self.mode)
        self.values = {step: value for step, value in read.items() if step <= trainer.global_step}
        if self._is_over():
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Notes the figure of this step, and ends the run if patience is over. Raises UserError if it isn't logged."""
        step, metrics = trainer.global_step, trainer.callback_metrics
        if step in self.values:
            return
        if self.figure not in metrics:
            logged = sorted(name for name in metrics if name.startswith("val/"))
            raise UserError(f"checkpoint.best={self.figure} isn't logged.{did_you_mean(self.figure, logged)}")
        self.values[step] = float(trainer.strategy.broadcast(float(metrics[self.figure])))
        if trainer.is_global_zero:
            self._save()
        if trainer.state.fn == "fit":
            self._stop_if_over(trainer)

    def _stop_if_over(self, trainer: pl.Trainer) -> None:
        if self._is_over():
            trainer.should_stop = True
            trainer.print(
                f"{self.figure} hasn't improved since step {self.step} (checkpoint.patience={self.patience}): the run "
                f"ends at step {trainer.global_step}",
                flush=True,
            )

    def _is_over(self) -> bool:
        return is_over(self.values, self.mode, self.patience)

    def _save(self) -> None:
        about = {"figure": self.figure, "mode": self.mode, "best": self.step}
        values = {str(step): value for step, value in self.values.items()}
        atomic_write(self.path, json.dumps(about | {"values": values}, indent=1) + "\n")

    def __str__(self) -> str:
        """'model/ holds the best: step 300, val/fd 12.3; the last, step 600, has 15.1'"""
        best, last = self.step, max(self.values, default=0)
        if best is None:
            return f"model/ holds the last: {self.figure} was never finite"
        after = "" if best == last else f"; the last, step {last}, has {self.values[last]:.4g}"
        return f"model/ holds the best: step {best}, {self.figure} {self.values[best]:.4g}{after}"


def mode_of(figure: str) -> str:
    """Whether the best value of a figure is the highest (max) or the lowest (min), by its name."""
    return "max" if any(word in figure for word in HIGHER_IS_BETTER) else "min"


def best_step(values: Mapping[int, float], mode: str) -> int | None:
    """The step with the best finite value, the first if several are equal; None without one."""
    finite = [step for step in sorted(values) if math.isfinite(values[step])]
    return (max if mode == "max" else min)(finite, key=lambda step: values[step], default=None)


def is_over(values: Mapping[int, float], mode: str, patience: int | None) -> bool:
    """Whether the last `patience` values were no better than one before them."""
    if not patience:
        return False
    best = best_step(values, mode)
    return sum(best is None or step > best for step in values) >= patience


def values_in(path: Path, figure: str, mode: str) -> dict[int, float]:
    """The values by step that a best.json holds of this figure; none if the file is about another figure, or can't be
    read."""
    try:
        read = json.loads(path.read_text("utf-8"))
        same = (read["figure"], read["mode"]) == (figure, mode)
        return {int(step): float(value) for step, value in read["values"].items()} if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_over_in(folder: RunFolder, checkpoint: Mapping[str, Any]) -> bool:
    """Whether `patience` has ended a run, and would end it again with the options of this `checkpoint` section."""
    figure, patience = checkpoint.get("best"), checkpoint.get("patience")
    if not figure or not patience:
        return False
    mode = checkpoint.get("mode") or mode_of(figure)
    if not is_over(values_in(folder.path / FILE, figure, mode), mode, patience):
        return False
    if rank() == 0:
        print(
            f"{folder.path}: ended by checkpoint.patience={patience}; give a larger one, or null, to continue",
            flush=True,
        )
    return True


def check(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError for options of `checkpoint` that don't go together, and for a figure that no validation of this
    stage logs. Callbacks of the user's own may log others, so with them any `val/...` is taken."""
    options = config["checkpoint"]
    figure, mode, patience = (options.get(key) for key in ("best", "mode", "patience"))
    if figure is None:
        if mode or patience:
            raise UserError("checkpoint.patience and mode need checkpoint.best=, the figure that they apply to.")
        return
    if not config.get("callbacks") and figure not in known:
        raise UserError(f"checkpoint.best={figure} isn't logged.{did_you_mean(str(figure), known)}")
    if not str(figure).startswith("val/"):
        raise UserError(f"checkpoint.best={figure}: give a figure of validation, such as val/loss.")
    if config["trainer"].get("limit_val_batches") in (0, 0.0):
        raise UserError(f"checkpoint.best={figure} needs validation: leave out trainer.limit_val_batches=0.")
    batches, every = config["trainer"].get("accumulate_grad_batches") or 1, config["trainer"].get("val_check_interval")
    if isinstance(every, int) and every % batches:
        raise UserError(
            f"trainer.val_check_interval={every} validates in the middle of a step of {batches} batches, which can't "
            f"be saved as the best: take a multiple of {batches}."
        )
