"""How long a call takes on a device, and how long it keeps the host."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.paired import spread


class Effort(NamedTuple):
    """How often a call is made: to warm up, on an idle device for the host's time, and in how many rounds, which take
    about `seconds` together."""

    warm: int
    host: int
    rounds: int
    seconds: float


FULL, LEAST = Effort(3, 5, 5, 4.0), Effort(0, 1, 1, 0.0)


class Clock:
    """Seconds between `start` and `stop`: of the device's own events on CUDA, else of the host's clock."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []
        self._began = 0.0

    def start(self) -> None:
        if self._cuda:
            self._events[0].record()
        self._began = time.perf_counter()

    def stop(self) -> float:
        if not self._cuda:
            return time.perf_counter() - self._began
        self._events[1].record()
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1e3


def measured(call: Callable[[], Any], device: torch.device, effort: Effort) -> dict[str, Any]:
    """Seconds of a call in a row of many, of each round: the host runs ahead, as in training. And by itself, on an idle
    device, the host's seconds until the call returns. Peak memory in GB (10^9 bytes) is the most that all tensors
    took."""
    for _ in range(effort.warm):
        call()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    host = [_host(call, device) for _ in range(effort.host)]
    clock = Clock(device)
    alone = _round(call, clock, 1)
    calls = max(1, int(effort.seconds / effort.rounds / max(alone, 1e-6)))
    rounds = [_round(call, clock, calls) for _ in range(effort.rounds)] if effort.warm else [alone]
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {"seconds": spread(rounds), "host": median(host), "peak_gb": peak}


def _host(call: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    passed = time.perf_counter() - began
    synchronize(device)
    return passed


def _round(call: Callable[[], Any], clock: Clock, calls: int) -> float:
    clock.start()
    for _ in range(calls):
        call()
    return clock.stop() / calls


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
