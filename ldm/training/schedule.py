"""The learning rate as a function of the step, and the number of steps that fit into a given time."""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import lightning.pytorch as pl

from ldm.errors import UserError

MEASURED_STEPS = 50


@dataclass
class LearningRate:
    """Linear warm-up over `warmup_steps`, then constant, or falling to `final` * lr at `total_steps` by a cosine or a
    line.

    `total_steps` None: not known yet, since the run is limited by time and hasn't been measured.
    """

    lr: float
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    final: float = 0.0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine", "linear"):
            raise UserError(f"optimizer.schedule={self.schedule} isn't one of constant, cosine, linear.")

    def __call__(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.lr * warm * self._decay(step)

    def _decay(self, step: int) -> float:
        if self.schedule == "constant" or not self.total_steps or step < self.warmup_steps:
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.final + (1 - self.final) * fall


def parse_time(value: Any) -> timedelta:
    """Lightning's forms of `max_time`: "DD:HH:MM:SS" or a mapping of timedelta's arguments."""
    if isinstance(value, timedelta):
        return value
    try:
        if isinstance(value, dict):
            return timedelta(**value)
        days, hours, minutes, seconds = (int(part) for part in str(value).split(":"))
    except (TypeError, ValueError):
        raise UserError(f"trainer.max_time={value} isn't of the form DD:HH:MM:SS, such as 00:00:08:00.") from None
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


class TimeBudget(pl.Callback):
    """Turns a wall-clock limit into a number of steps: after 50 steps have been measured, and anew at a quarter, half
    and three quarters of them, since a machine that was busy at first, or is later, does more or fewer than it seemed.

    The clock started when the run did, so loading and encoding count. `reserve` is the share kept for validation,
    sample grids and saving. The number is stored in every checkpoint: the schedule ends with the run, and a resumed run
    keeps it. The first process's clock counts for all, which have to stop together.
    """

    def __init__(self, limit: timedelta, started: float, reserve: float = 0.06):
        self.limit, self.started, self.reserve = limit.total_seconds(), started, reserve
        self._ended: deque[float] = deque(maxlen=2000)  # when each optimizer step did
        self._step = 0
        self._looks: set[int] | None = None  # the steps at which to count anew; None: not measured yet

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.learning_rate.total_steps:
            trainer.fit_loop.epoch_loop.max_steps = pl_module.learning_rate.total_steps
            self._looks = set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated
            return
        self._step = step
        self._ended.append(time.monotonic())
        if self._looks is not None and step not in self._looks:
            return
        total = trainer.strategy.broadcast(self._fitting(step))
        if total is None or total == pl_module.learning_rate.total_steps:
            return
        if self._looks is None:
            self._looks = {quarter * total // 4 for quarter in (1, 2, 3)}
        trainer.fit_loop.epoch_loop.max_steps = pl_module.learning_rate.total_steps = total
        trainer.print(f"{total} steps fit into the time given")

    def _fitting(self, step: int) -> int | None:
        """The number of steps in all, or None where too few are measured."""
        left = self.limit * (1 - self.reserve) - (self._ended[-1] - self.started)
        if left <= 0:
            return step
        if step < MEASURED_STEPS or len(self._ended) <= 10:
            return None
        # The median: the first steps allocate and are slow, and a hiccup must not shorten the run.
        seconds_per_step = statistics.median(b - a for a, b in pairwise(self._ended))
        return max(step + 1, step + int(left / seconds_per_step))
