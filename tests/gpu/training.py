"""A run on a device, watched: its weights before and after, its first gradients, and that its steps don't wait."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tests.gpu.measures import set_waits
from tests.pretend.cases import train
from tests.pretend.lightning import watched

STEPS, WARM = 5, 2  # the first steps build kernels, count operations and compile
Tensors = dict[str, Tensor]


class Watch(pl.Callback):
    """From the end of step WARM to the end of the last, CUDA raises where the host would wait: all callbacks of a
    step, and fetching its batch, are inside."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before: Tensors = {}
        self.after: Tensors = {}
        self.gradients: Tensors = {}
        self.loader: dict[str, Any] = {}
        self.watched = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.before, self.loader = trained(pl_module), trainer.datamodule._options  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:  # this callback is the first: nothing has divided them by the scaler's scale yet
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else scaler.get_scale()
            named = pl_module.trained.named_parameters()
            self.gradients = {name: p.grad.float().cpu() / scale for name, p in named if p.grad is not None}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            set_waits(self.device, "default")
            self.after = trained(pl_module)
        elif trainer.global_step >= WARM:
            set_waits(self.device, "error")
            self.watched += 1

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        set_waits(self.device, "default")


def trained(task: Any) -> Tensors:
    parameters = task.trained.named_parameters()
    return {name: p.detach().cpu().clone() for name, p in parameters if p.requires_grad}


def run(monkeypatch: Any, device: torch.device, stage: str, runs: Path, *words: str) -> Watch:
    """A run of STEPS steps by its command line, in float32 unless `words` say otherwise."""
    watch = Watch(device)
    accelerator = "gpu" if device.type == "cuda" else device.type
    with monkeypatch.context() as patch:
        watched(patch, watch)
        words = ("trainer.precision=32-true", *words, f"trainer.max_steps={STEPS}")
        train(stage, runs, *words, accelerator=accelerator)
    assert watch.watched == STEPS - WARM
    return watch


def apart(got: Tensors, wanted: Tensors) -> float:
    """|got - wanted| / |wanted|, of all tensors together."""
    assert got.keys() == wanted.keys()
    difference = torch.stack([(got[name] - wanted[name]).double().square().sum() for name in wanted]).sum()
    return float((difference / torch.stack([t.double().square().sum() for t in wanted.values()]).sum()).sqrt())


def steps_apart(got: Watch, wanted: Watch) -> float:
    """How far apart the weights came, by how far the wanted ones went: of the numbers whose gradient is above a
    thousandth of its tensor's greatest. Where it is rounding alone, Adam goes as far, anywhere."""
    clear = {name: g.abs() > 1e-3 * g.abs().max() for name, g in wanted.gradients.items()}
    went = {name: (wanted.after[name] - wanted.before[name])[mask] for name, mask in clear.items()}
    return apart({name: (got.after[name] - got.before[name])[mask] for name, mask in clear.items()}, went)


def finite(network: Tensors | nn.Module) -> bool:
    tensors = network.values() if isinstance(network, dict) else network.state_dict().values()
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
