"""What crosses between the host and an accelerator, without the one waiting for the other.

A copy to an accelerator returns at once only from pinned memory, and one to the host only into it. Whatever reads a
number of the accelerator's on the host waits until all work queued before is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; the host goes on while it is copied."""
    device = torch.device(device)
    if device.type in ("cpu", "mps", "meta") or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=tensor.device.type != "cpu" and device.type != "cpu")
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one device on the host, which waits once for all of them."""
    device = tensors[0].device
    if device.type in ("cpu", "mps"):
        return [tensor.cpu() for tensor in tensors]
    held = [torch.empty(t.shape, dtype=t.dtype, device="cpu").pin_memory() for t in tensors]
    for here, tensor in zip(held, tensors, strict=True):
        here.copy_(tensor, non_blocking=True)
    arrived = torch.Event(device=device)
    arrived.record()
    arrived.synchronize()
    return held


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU for one without any."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@contextmanager
def lent(module: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Has the module on `device` while the block runs, and then where it was; None leaves it there."""
    before = device_of(module)
    module.to(before if device is None else device)
    try:
        yield
    finally:
        module.to(before)


def fast_products(device: torch.device | str) -> None:
    """Has a CUDA GPU multiply float32 matrices in TF32 (10 bits of mantissa, sums in float32), as its convolutions do
    anyway: a setting of the process, for commands. Other devices are left as they are."""
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


class Later:
    """The number in a tensor of one element, to be read on the host when it has come there.

    `read` waits only if that has not happened yet: a step later it has.
    """

    def __init__(self, value: Tensor):
        value = value.detach()
        self._arrived: torch.Event | None = None
        if value.device.type in ("cpu", "mps"):
            self._host = value.clone()
            return
        self._host = torch.empty(value.shape, dtype=value.dtype, device="cpu").pin_memory()
        self._host.copy_(value, non_blocking=True)
        self._arrived = torch.Event(device=value.device)
        self._arrived.record()

    def read(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.item()


def available(accelerator: str = "auto", local_rank: int = 0) -> torch.device:
    """The device that Lightning's Trainer takes by this `accelerator`, for work before it starts."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
