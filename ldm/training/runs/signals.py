"""SIGTERM, SIGUSR1 and Ctrl-C: the current step is finished, the run is saved, and the command to continue it is
shown."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed

from ldm.common.devices import AsyncScalar
from ldm.training.runs.processes import gathered

# SLURM sends the signal that its --signal names, usually SIGUSR1, which would end the process at once.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal stopped the run: between two steps, or `at_once` in the middle of one."""

    def __init__(self, number: int, at_once: bool = False):
        super().__init__(signal.Signals(number).name)
        self.number, self.at_once = number, at_once

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells count: 143 for SIGTERM, 130 for Ctrl-C, 138 for SIGUSR1."""
        return 128 + self.number


class StopOnSignal(pl.Callback):
    """Ends the run by `Stopped` after the step during which a signal came; a second Ctrl-C doesn't wait for that.

    If one of several processes gets the signal, all stop at the same step: at each step they exchange what they have
    received, and read it at the next one, so that no host waits for its device. A signal in the last step takes effect
    once the run is saved: the last grids and validation are left to the resumed run. Lightning restores the previous
    handlers after `fit`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._agreed: AsyncScalar | None = None  # the highest signal of any process at the start of the previous step

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts to catch the signals that stop a run."""
        # This replaces Lightning's own agreement on a SIGTERM, which makes the host wait at every step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        for number in STOPPING:
            try:
                signal.signal(number, self._note)
            except ValueError:  # not the main thread, as in some notebooks: nothing can be caught there
                return

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Raises Stopped between optimizer steps, in all processes at the same step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        received = self.received or 0
        if trainer.world_size > 1:
            own, received = received, int(self._agreed.read()) if self._agreed else 0
            highest = torch.full((), float(own), device=pl_module.device)
            distributed.all_reduce(highest, distributed.ReduceOp.MAX)
            self._agreed = AsyncScalar(highest)
        if received:
            raise Stopped(received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raises Stopped for a signal that came in the last step, in any process."""
        if received := max(gathered(self.received or 0)):
            raise Stopped(received)

    def _note(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise Stopped(number, at_once=True)
        self.received = number
        if number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)


def continuing_command(words: Sequence[str] | None = None) -> str:
    """This process's command line with resume=true instead of options that would start the run again."""
    program, *options = sys.argv if words is None else words
    name = Path(program).name
    options = [word for word in options if word.partition("=")[0].lstrip("+") not in ("resume", "overwrite")]
    return shlex.join([*(("python", program) if name.endswith(".py") else (name,)), *options, "resume=true"])
