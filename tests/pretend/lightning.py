"""Whole runs on the pretended device, through Lightning's own Trainer and with every callback of a run."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

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


@contextlib.contextmanager
def pretended_runs(monkeypatch: Any) -> Iterator[Watch]:
    """Inside, runs train on the pretended device; yields what watches their steps."""
    from ldm import devices
    from ldm.training import fit

    watch, trainer = Watch(), pl.Trainer

    def made(**options: Any) -> pl.Trainer:
        options |= {"strategy": OnPretendedDevice(), "accelerator": "auto", "devices": 1}
        return trainer(**options | {"callbacks": [watch, *options["callbacks"]]})

    def available(*_: Any) -> torch.device:
        return torch.device(DEVICE, 0)

    with pretended(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(fit.pl, "Trainer", made)
        for module in (devices, fit):
            patch.setattr(module, "available", available)
        yield watch
