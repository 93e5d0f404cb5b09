"""The stored averages of a run, ema/step-00001024.safetensors, from which averages of other lengths are rebuilt."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.files import atomic_write, make_folder
from ldm.common.tensors import write_safetensors
from ldm.training.averages.power_ema import combination
from ldm.training.trainer.sharded import is_sharded, whole


def interval(step: int, most: int) -> int:
    """The number of steps between stored averages: the smallest power of two with which at most `most` are stored up to
    `step`.

    It doubles as the run goes on, and every other snapshot is then removed. So a run needn't know how long it will be,
    and a resumed run keeps the same snapshots as an uninterrupted one.
    """
    return 2 ** max(0, math.ceil(math.log2(max(step, 1) / most)))


class Snapshots(pl.Callback):
    """Stores the averages of a task's `power_lengths` in `folder`, in float32, during the run and at its end."""

    def __init__(self, folder: Path, most: int = 64):
        if most < 8:
            raise UserError(f"ema.snapshots={most}: at least 8 are needed to rebuild an average from, usually 64.")
        self.folder, self.most = folder, most

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stores the averages between optimizer steps, every `interval` steps."""
        step = trainer.global_step
        if step and batch_idx % trainer.accumulate_grad_batches == 0 and step % interval(step, self.most) == 0:
            self._store(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stores the averages of the last step."""
        self._store(trainer, pl_module)

    def _store(self, trainer: pl.Trainer, task: Any) -> None:
        if not task.power_lengths or not trainer.global_step:
            return
        if not (trainer.is_global_zero or is_sharded(task)):
            return
        step, averages = trainer.global_step, dict(zip(task.power_lengths, task.power, strict=True))
        tensors = weights_of(averages, parameter_names(task))  # by all processes, if weights are spread
        if not trainer.is_global_zero:
            return
        make_folder(self.folder)
        write(self.folder, step, tensors)
        for old in stored_steps(self.folder):
            if old != step and old % interval(step, self.most):
                path_of(self.folder, old).unlink()


def parameter_names(task: Any) -> list[str]:
    """The name of each averaged parameter in the saved model, in the order of `parameters()`; "" if it isn't there."""
    saved_names = {own: saved for saved, own in task.weight_names().items()}
    return [saved_names.get(f"average.{name}", "") for name, _ in task.average.named_parameters()]


def path_of(folder: Path, step: int) -> Path:
    """The file of a step's averages."""
    return folder / f"step-{step:08d}.safetensors"


def stored_steps(folder: Path) -> list[int]:
    """The steps whose averages are stored, in order."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors"))


def weights_of(averages: Mapping[float, nn.Module], names: list[str]) -> dict[str, Tensor]:
    """The parameters of the averages, which are given by their lengths, under the keys LENGTH/NAME."""
    return {
        f"{length}/{name}": whole(parameter.detach()).float().cpu().contiguous()
        for length, average in averages.items()
        for name, parameter in zip(names, average.parameters(), strict=True)
        if name
    }


def write(folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """Writes the averages of a step to one file."""
    atomic_write(path_of(folder, step), lambda file: write_safetensors(file, tensors))


class Rebuilt(NamedTuple):
    """A rebuilt average, with the steps and lengths of the stored averages that it is made of."""

    weights: dict[str, Tensor]
    steps: list[int]
    lengths: list[float]


def rebuild(folder: Path, length: float) -> Rebuilt:
    """The average of that length at the last stored step: the sum, in float64, of the stored averages with the weights
    of `combination`.

    Raises UserError if the folder holds none.
    """
    from safetensors import safe_open

    steps = stored_steps(folder)
    if not steps:
        raise UserError(
            f"there are no stored averages in {folder}: train with ema.lengths=[0.05,0.1], and any length can be "
            "rebuilt afterwards."
        )
    with safe_open(path_of(folder, steps[0]), "pt") as file:
        lengths = sorted({float(key.partition("/")[0]) for key in file.keys()})  # noqa: SIM118  no mapping
    pairs = [(own, step) for step in steps for own in lengths]
    shares = combination([own for own, _ in pairs], [step for _, step in pairs], length)
    total: dict[str, Tensor] = {}
    for step in steps:
        with safe_open(path_of(folder, step), "pt") as file:
            for key in file.keys():  # noqa: SIM118
                own, _, name = key.partition("/")
                share = shares[pairs.index((float(own), step))].item()
                tensor = file.get_tensor(key).double()
                total[name] = total[name].add_(tensor, alpha=share) if name in total else share * tensor
    return Rebuilt({name: tensor.to(torch.float32) for name, tensor in total.items()}, steps, lengths)
