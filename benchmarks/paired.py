"""Shared by the speed benchmarks: paired timing, the machine's peak, and the share of it that is reached."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]


def alternate(calls: Mapping[str, Call], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times in turn, so that a slow spell of the machine affects all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + warm):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds: Mapping[str, list[float]], ours: str = "ours") -> dict[str, Any]:
    """Medians in milliseconds, and how many times longer the others take: the median, least and most of the rounds."""
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds[ours], strict=True)] for name in seconds}
    return {
        "ms": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "times ours": {name: spread(values) for name, values in ratios.items() if name != ours},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def peak_flops(n: int = 2048, rounds: int = 5) -> float:
    """Operations per second of a large float32 matrix product, the best of several: the machine's peak."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(alternate({"product": lambda: a @ b}, rounds)["product"])


def flops(call: Call) -> int:
    """Operations of the convolutions and matrix products in `call`, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def stepper(network: nn.Module, loss: Call, *, fused: bool, learning_rate: float = 1e-4) -> Call:
    """A whole training step of `network`: zeroed gradients, forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def rows(report: Mapping[str, Any], peak: float) -> dict[str, Any]:
    """A case's figures on one line for the table: see `table`."""
    line: dict[str, Any] = {"ours, ms": report["ms"]["ours"]}
    for name, ratio in report["times ours"].items():
        line[f"{name} / ours"] = f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
    if "flops" in report:
        line["GFLOP/s"] = report["flops"] / report["ms"]["ours"] / 1e6
        line["share of peak"] = report["flops"] / report["ms"]["ours"] * 1e3 / peak
    return line | {name: value for name, value in report.items() if name not in ("ms", "times ours", "flops")}


def table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one row a case."""
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    head = f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    body = [f"| {name} | {' | '.join(shown(line.get(c, '')) for c in columns)} |" for name, line in lines.items()]
    return "\n".join([head, *body])


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
