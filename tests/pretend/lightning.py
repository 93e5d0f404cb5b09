"""Whole runs on the pretended device, through Lightning's own Trainer and with every callback of a run."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from tests.pretend.device import DEVICE, WAITS, moved, pretended, tick


class PretendedAccelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return [torch.device(DEVICE, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "pretended"


class OnPretendedDevice(SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__(device=torch.device(DEVICE, 0), accelerator=PretendedAccelerator())

    def model_to_device(self) -> None:
        moved(self.model)


class OnPretendedDevices(DDPStrategy):
    """Two processes, each with a pretended device; gradients are averaged here, since DDP's own reducer is in C++ and
    asks for the numbers' memory."""

    def __init__(self) -> None:
        devices = [torch.device(DEVICE, 0)] * 2
        super().__init__(PretendedAccelerator(), devices, process_group_backend="gloo")

    @property
    def root_device(self) -> torch.device:
        return torch.device(DEVICE, 0)

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", rank=self.global_rank, world_size=self.world_size)

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        moved(self.model)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        for parameter in self.lightning_module.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad.inner)
                parameter.grad.div_(self.world_size)


class Watch(pl.Callback):
    """Notes what each step of training waits for: from the start of its batch to that of the next."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._close()
        tick()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:  # what follows is saving
            self._close()

    def _close(self) -> None:
        self.steps.append(Counter(WAITS))
        WAITS.clear()


def watched(patch: Any, watch: pl.Callback, more: Callable[[], dict[str, Any]] = dict) -> None:
    """Has the trainers of runs call `watch` before all other callbacks, and take `more` options."""
    from ldm.training.trainer import fit

    trainer = pl.Trainer

    class Watched(trainer):  # type: ignore[misc, valid-type]
        @functools.wraps(trainer.__init__)  # options are held against its signature
        def __init__(self, **options: Any):
            super().__init__(**options | more() | {"callbacks": [watch, *options["callbacks"]]})

    patch.setattr(fit.pl, "Trainer", Watched)


@contextlib.contextmanager
def pretended_runs(monkeypatch: Any, strategy: Callable[[], Any] = OnPretendedDevice) -> Iterator[Watch]:
    """Inside, runs train on the pretended device; yields what watches their steps."""
    from ldm.common import devices
    from ldm.training.trainer import fit

    watch = Watch()

    def available(*_: Any) -> torch.device:
        return torch.device(DEVICE, 0)

    with pretended(monkeypatch), monkeypatch.context() as patch:
        watched(patch, watch, lambda: {"strategy": strategy(), "accelerator": "auto", "devices": "auto"})
        for module in (devices, fit):
            patch.setattr(module, "available", available)
        yield watch
