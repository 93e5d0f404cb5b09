"""Guards against ruined models: gradients that aren't finite, and failures of the machine."""

import errno
import re
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed

from ldm.common.devices import AsyncScalar
from ldm.common.errors import UserError
from ldm.training.optimization import gradients
from ldm.training.runs.folder import RunFolder
from ldm.training.runs.processes import gathered
from ldm.training.trainer.sharded import is_sharded

NAMED = 8  # samples named in a message
CANT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


class FiniteGuard(pl.Callback):
    """Skips updates whose gradient isn't finite, and stops the run at the first one, or after `skip` of them.

    A loss that isn't finite has such a gradient too, so the only cost is the norm, which clipping needs anyway. The
    optimizer's own step obeys the flag (`gradients.obeys_found_inf`), and the host reads it before the next update,
    before anything is saved, and at the end. For an optimizer that doesn't obey, the host waits and removes the
    gradients.

    With float16 the scaler skips such updates, as it must while it searches for its scale. There the loss itself has to
    be finite, and the gradient once the scale is 1, since no smaller scale would help. Sharded networks run on all
    processes or on none, so their samples aren't tried one by one.

    The guard keeps no pixels of a step's batches, only where they start in the order of samples, from which they can
    be made again.
    """

    def __init__(self, folder: RunFolder, skip: int = 0):
        self.folder, self.skip, self.skipped = folder, skip, 0
        self._starts: list[int] = []
        self._losses: list[Tensor] = []
        self._judge: Callable[[], None] | None = None  # judges the previous update when its flag has reached the host

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Notes where in the data each batch of an optimizer step starts."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._starts, self._losses = [], []
        self._starts.append(batch["start"])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Notes the loss of each batch of an optimizer step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Skips the optimizer step if the gradient isn't finite. The host waits to learn that only where the optimizer
        can't skip a step by itself."""
        self._settle()
        scaler, norm = getattr(trainer.precision_plugin, "scaler", None), pl_module.norms(optimizer).total
        not_finite = ~norm.isfinite() if scaler is None else not_finite_at_any_scale(self._losses, norm, scaler)
        step, flag = trainer.global_step + 1, AsyncScalar(not_finite)
        self._judge = partial(self._judged, trainer, pl_module, step=step, starts=self._starts, not_finite=flag)
        if scaler is not None:
            return
        if gradients.obeys_found_inf(optimizer):
            optimizer.found_inf = not_finite.float()  # type: ignore[attr-defined]
        elif not_finite:
            self._settle()
            optimizer.zero_grad()  # the optimizer skips parameters without a gradient

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Checks the last step."""
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        """The number of skipped steps, the last one judged."""
        self._settle()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number of skipped steps."""
        self.skipped = state_dict["skipped"]

    def _settle(self) -> None:
        judge, self._judge = self._judge, None
        if judge:
            judge()

    def _judged(
        self, trainer: pl.Trainer, pl_module: Any, *, step: int, starts: list[int], not_finite: AsyncScalar
    ) -> None:
        if not not_finite.read():
            return
        found = f"step {step}: {self._describe(trainer, pl_module, starts)}"
        if self.skipped >= self.skip:
            raise UserError(f"{found}. {self._next_step()}")
        self.skipped += 1
        trainer.print(f"{found}; update left out ({self.skipped} of at most {self.skip})", flush=True)

    def _describe(self, trainer: pl.Trainer, pl_module: Any, starts: list[int]) -> str:
        """Names the samples whose loss isn't finite when each is computed alone; if there are none, all samples of the
        step, on all processes."""
        batches = [trainer.datamodule.train_batch(start) for start in starts]  # type: ignore[attr-defined]
        untried = is_sharded(pl_module)
        own_samples = [i for batch in batches for i in batch["index"].tolist()]
        own_spoilt: list[int] = []
        try:
            with trainer.precision_plugin.train_step_context():
                for batch in [] if untried else batches:
                    own_spoilt += _not_finite_samples(trainer, pl_module, batch)
        except torch.OutOfMemoryError:  # tells nothing about any one sample
            own_spoilt, untried = [], True
        parts = gathered((own_spoilt, own_samples))
        not_finite = [i for part, _ in parts for i in part]
        samples = [i for _, part in parts for i in part]
        names = sample_names(not_finite or samples, trainer.datamodule)  # type: ignore[attr-defined]
        if not_finite:
            return f"the loss of {names} isn't finite"
        what = "the loss or its gradient isn't finite" if untried else "the loss is finite but its gradient isn't"
        return f"{what} for one or more of {names}"

    def _next_step(self) -> str:
        checkpoint = self.folder.newest_checkpoint()
        good = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was saved yet"
        return (
            f"{good}; nothing was saved since. Lower optimizer.lr or fix these samples and use resume=true, or leave "
            "such updates out with skip_bad_batches=10."
        )


def not_finite_at_any_scale(losses: list[Tensor], norm: Tensor, scaler: Any) -> Tensor:
    """Whether, on any process, no smaller loss scale would make a step's gradient finite: a bool ()."""
    scale = scaler.scale(norm.new_ones(()))
    not_finite = ~torch.stack(losses).isfinite().all() | (~norm.isfinite() & (scale <= 1))
    if distributed.is_initialized():  # each process has losses of its own
        counts = not_finite.float()
        distributed.all_reduce(counts)
        not_finite = counts > 0
    return not_finite


@torch.no_grad()
def loss_of(task: Any, row: dict[str, Any]) -> Tensor:
    """The loss of a batch of one sample; NaN where computing it fails. Raises torch.OutOfMemoryError."""
    try:
        return task.losses(row, task.trained)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return torch.tensor(float("nan"))


def _not_finite_samples(trainer: pl.Trainer, task: Any, batch: dict[str, Any]) -> list[int]:
    """The samples of a batch on the host whose loss isn't finite when each is a batch on its own."""
    rows = single_samples(trainer.strategy.batch_to_device(batch))
    return [int(row["index"][0]) for row in rows if not loss_of(task, row).isfinite()]


def single_samples(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A batch as batches of one sample each."""
    return [_row(batch, i) for i in range(len(batch["index"]))]


def _row(value: Any, i: int) -> Any:
    """The part of a batch's value that belongs to sample `i`; numbers belong to all samples."""
    if isinstance(value, (Tensor, list)):
        return value[i : i + 1]
    if isinstance(value, Mapping):
        return {key: _row(part, i) for key, part in value.items()}
    if isinstance(value, tuple):
        return type(value)(*(_row(part, i) for part in value))
    return value


def sample_names(indices: list[int], data: Any) -> str:
    """'sample 3 (a/b.png), sample 8 (c.png) and 4 more'."""
    names = getattr(getattr(data.train, "table", data.train), "names", ())
    shown = [f"sample {i} ({names[i]})" if i < len(names) else f"sample {i}" for i in indices[:NAMED]]
    return ", ".join(shown) + (f" and {len(indices) - NAMED} more" if len(indices) > NAMED else "")


def explained(error: BaseException, config: Mapping[str, Any]) -> UserError | None:
    """The error to show for a failure of the machine, with the relevant values; None for other errors."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return UserError(_out_of_memory(config))
    if _worker_was_ended(error):
        killed = re.search(r"signal: (\w+)", text)
        how = f" by the signal {killed[1]}" if killed else ""
        return UserError(
            f"one of the data workers was killed{how}, usually because memory ran out. Use loader.workers=0, or fewer, "
            "and resume=true to continue from the last checkpoint."
        )
    if isinstance(error, OSError) and error.errno in CANT_WRITE:
        again = "resume=true" if "resume" in config else "try again"
        done = "opened" if error.errno == errno.EACCES else "written"
        return UserError(
            f"{error.filename or 'a file'} can't be {done} ({error.strerror}): free space or fix the permissions, then "
            f"{again}."
        )
    return None


def _worker_was_ended(error: BaseException) -> bool:
    """Whether a data worker has ended: PyTorch says so while it waits for a batch, and if one is being sent, the
    connection breaks.
    """
    while_sent = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    frames = traceback.extract_tb(error.__traceback__) if while_sent else []
    return "DataLoader worker (pid" in str(error) or any("multiprocessing" in frame.filename for frame in frames)


def _out_of_memory(config: Mapping[str, Any]) -> str:
    batch: Any = config.get("batch_size")
    if "trainer" not in config:
        less = f"Use batch_size={max(1, batch // 2)}, or fewer or smaller" if batch else "Take fewer or smaller"
        return f"out of memory{f' at batch_size={batch}' if batch else ''}. {less} images."
    parts = config["trainer"].get("accumulate_grad_batches") or 1
    half = f"batch_size={max(1, batch // 2)} trainer.accumulate_grad_batches={2 * parts}"
    return (
        f"out of memory at batch_size={batch}, trainer.precision={config['trainer'].get('precision')}. "
        f"Take {half}, which gives the same steps, or smaller images or channels; resume=true goes on from the "
        "last checkpoint."
    )
