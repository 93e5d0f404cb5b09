"""What crosses between the host and an accelerator, without the one waiting for the other.

A copy to an accelerator returns at once only from pinned memory, and one to the host only into it. Whatever reads a
number of the accelerator's on the host waits until all work queued before is done.
"""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; the host goes on while it is copied."""
    device = torch.device(device)
    if device.type in ("cpu", "mps", "meta") or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=tensor.device.type != "cpu" and device.type != "cpu")
    return tensor.pin_memory().to(device, non_blocking=True)


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
