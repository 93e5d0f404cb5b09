"""Copies between the host and an accelerator that don't make one wait for the other.

A copy to an accelerator returns at once only from pinned memory, and a copy to the host only into pinned memory.
Reading a number from the accelerator on the host waits until all work queued before it is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`, copied without making the host wait."""
    device = torch.device(device)
    if device.type in ("cpu", "mps", "meta") or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=tensor.device.type != "cpu" and device.type != "cpu")
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Copies on the host of tensors from one device; the host waits once for all of them."""
    device = tensors[0].device
    if device.type in ("cpu", "mps"):
        return [tensor.cpu() for tensor in tensors]
    copies = [torch.empty(t.shape, dtype=t.dtype, device="cpu").pin_memory() for t in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.Event(device=device)
    arrived.record()
    arrived.synchronize()
    return copies


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU for a module without any."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@contextmanager
def temporarily_on(module: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Moves the module to `device` for the length of the block, and back afterwards; None leaves it where it is."""
    before = device_of(module)
    module.to(before if device is None else device)
    try:
        yield
    finally:
        module.to(before)


def fast_products(device: torch.device | str) -> None:
    """Has a CUDA GPU multiply float32 matrices in TF32 (10 bits of mantissa, sums in float32), as its convolutions do.

    This is a setting of the whole process, so it is for commands. Other devices aren't affected.
    """
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


class AsyncScalar:
    """The number in a tensor of one element, copied to the host while the accelerator goes on.

    `read` waits only if the copy hasn't arrived yet: one training step later it has.
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
        """The number, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.item()


def available(accelerator: str = "auto", local_rank: int = 0) -> torch.device:
    """The device that Lightning's Trainer takes for this `accelerator`, for work before it starts."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
