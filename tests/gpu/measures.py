"""What a device is measured for in addition to its results: whether the host waits for it, and how much memory a step
takes."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def set_waits(device: torch.device, mode: str) -> None:
    """Has CUDA raise ("error"), warn of ("warn") or allow ("default") what makes the host wait. Other devices don't
    know. Nor does CUDA see all: copies out of memory that isn't pinned pass, the stand (tests/pretend) counts those."""
    if device.type == "cuda":
        with warnings.catch_warnings():  # torch says each time that it doesn't see all
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Collects what makes the host wait inside: the lines that did."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_waits(device, "warn")
        try:
            yield found
        finally:
            set_waits(device, "default")
    found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]


def peak(device: torch.device, step: Callable[[], Any]) -> int:
    """Bytes that `step` takes at most beside what was there before; on a CPU those that it keeps for the backward
    pass."""
    if device.type != "cuda":
        return _kept(step)
    step()  # what libraries allocate once
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _kept(step: Callable[[], Any]) -> int:
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(sizes.values())
