"""The learning rate as a function of the step, and the number of steps that fit into a given time."""

import math
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import lightning.pytorch as pl

from ldm.common.errors import UserError

MEASURED_STEPS = 50  # steps before the first estimate
FEWEST = 10  # steps that a speed is measured on


@dataclass
class LearningRate:
    """Linear warm-up over `warmup_steps`, then constant, or a fall along a cosine or a line to `final` * lr at
    `total_steps`.

    `total_steps` is None while it isn't known: a run with a time limit has to be measured first. If the number changes
    during the run (`end_at`), the rate falls from its present value to the new end, so it never jumps. `since` is the
    step from which it falls, with the share of the fall done by then; None means the end of the warm-up.
    """

    lr: float
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    final: float = 0.0
    total_steps: int | None = None
    since: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine", "linear"):
            raise UserError(f"optimizer.schedule={self.schedule} isn't one of constant, cosine, linear.")

    def __call__(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.lr * warm * self._decay(step)

    def end_at(self, total_steps: int, step: int) -> None:
        """Sets another total number of steps, at `step`."""
        self.since = (max(step, self.warmup_steps), self._progress(step))
        self.total_steps = total_steps

    def _decay(self, step: int) -> float:
        if self.schedule == "constant":
            return 1.0
        progress = self._progress(step)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.final + (1 - self.final) * fall

    def _progress(self, step: int) -> float:
        """The share of the fall that is done, in 0..1."""
        start, done = self.since or (self.warmup_steps, 0.0)
        if not self.total_steps or step < start:
            return done
        return min(1.0, done + (1 - done) * (step - start) / max(1, self.total_steps - start))


def parse_time(value: Any) -> timedelta:
    """Lightning's forms of `max_time`: "DD:HH:MM:SS" or a mapping of the arguments of timedelta."""
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
    """Turns a time limit into a number of steps.

    The number is estimated after 50 steps, and again after every sixteenth of the time, because a machine may have been
    busy before or become busy later. If `most` steps are a limit too, whichever comes first ends the run and the
    schedule.

    The clock starts with the run, so loading and encoding count. It continues from the `used` seconds of earlier
    processes, which checkpoints note; checkpoints of runs without a limit (`limit` None) note them too, since a limit
    may be given later. `reserve` is the share of the time kept for validation, sample grids and saving. The number of
    steps is stored in every checkpoint, so the schedule ends with the run and a resumed run keeps it. All processes
    have to stop together, so the clock of the first one counts for all.
    """

    def __init__(
        self, limit: timedelta | None, started: float, reserve: float = 0.06, used: float = 0.0, most: int | None = None
    ):
        self.limit = limit.total_seconds() if limit else None
        self.started, self.reserve, self.used, self.most = started, reserve, used, most
        self._ended: list[float] = []  # when each optimizer step since the last estimate ended
        self._step = self._printed = 0
        self._next_look: int | None = None  # the step of the next estimate; None: never
        self._is_measured = True  # whether a number of steps known at the start was measured, not given as `most`

    def state_dict(self) -> dict[str, Any]:
        """The seconds used so far, so that a resumed run has the rest."""
        used = self.used + time.monotonic() - self.started
        return {"limit": self.limit, "used": used, "most": self.most, "is_measured": self._is_measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores whether the number of steps is settled; the seconds used are read before training starts."""
        self._is_measured = state_dict.get("is_measured", True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prints when training will end; without a time limit, it only sets the number of steps."""
        if self.limit is None:
            if self.most:
                trainer.fit_loop.epoch_loop.max_steps = self.most
            return
        rate = pl_module.learning_rate
        self._is_measured = self._is_measured and bool(rate.total_steps)  # a resumed run keeps its number
        if not self._is_measured:
            self._next_look = 0
            if self.most:
                if rate.total_steps != self.most:
                    rate.end_at(self.most, trainer.global_step)
                trainer.print(f"trains for {self.limit:g} s, or to step {self.most}, whichever comes first")
        if rate.total_steps:
            trainer.fit_loop.epoch_loop.max_steps = rate.total_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Measures the speed of steps, and ends the schedule at as many as the time allows."""
        step = trainer.global_step
        if step == self._step or self._next_look is None:  # the former while gradients are being accumulated
            return
        self._step = step
        self._ended.append(time.monotonic())
        if step < self._next_look:
            return
        total, self._next_look = trainer.strategy.broadcast(self._look(step))
        if total is None:
            return
        total = min(total, self.most or total)
        self._ended, self._is_measured = self._ended[-1:], True
        pl_module.learning_rate.end_at(total, step)
        trainer.fit_loop.epoch_loop.max_steps = total
        if abs(total - self._printed) > 0.1 * self._printed:
            self._printed = total
            trainer.print(f"{total} steps fit into the training time")

    def _blind(self, step: int, left: float) -> int:
        """How many steps may pass before the next look while steps are still being measured.

        They are at most as many as there have been, and take at most half of the `left` seconds. Looks are rare because
        at each one all processes wait for each other.
        """
        slowest = max((b - a for a, b in pairwise(self._ended)), default=math.inf)
        due = max(MEASURED_STEPS - step, FEWEST + 1 - len(self._ended))  # until steps have been measured
        return max(1, min(len(self._ended), due, int(left / (2 * slowest)) if slowest else due))

    def _look(self, step: int) -> tuple[int | None, int]:
        """The total number of steps, or None if too few were measured; and the step at which to look again."""
        limit = self.limit or math.inf
        left = limit * (1 - self.reserve) - self.used - (self._ended[-1] - self.started)
        if left <= 0:
            return step, step
        if step < MEASURED_STEPS or len(self._ended) <= FEWEST:
            return None, step + self._blind(step, left)
        # The median: the first steps allocate and are slow, and a hiccup must not shorten the run.
        seconds_per_step = statistics.median(b - a for a, b in pairwise(self._ended))
        until_next = int(limit / 16 / seconds_per_step)
        return step + max(1, int(left / seconds_per_step)), step + max(FEWEST, until_next)
