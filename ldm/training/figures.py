"""Means over samples, whatever batches and processes they came in."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ldm.training.sharing import gathered


class Means:
    """Means of named figures over all samples that were added; adding makes the host wait for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of each figure, and the rows that they are of
        self._rows = 0

    def add(self, figures: Mapping[str, Tensor], rows: int) -> None:
        """Figures () that are each the mean over the same `rows` samples."""
        if not rows:
            return
        self._rows += rows
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value.detach().float() * rows, count + rows

    def taken(self) -> tuple[dict[str, float], int]:
        """The means over the rows of all processes, and how many those are; then it begins anew. Called by all, and
        the host waits here. What only some batches have is the mean over theirs."""
        sums = torch.stack([total for total, _ in self._sums.values()]).tolist() if self._sums else []
        counts = [count for _, count in self._sums.values()]
        own = dict(zip(self._sums, zip(sums, counts, strict=True), strict=True))
        parts = gathered((own, self._rows))
        self._sums, self._rows = {}, 0
        return means_of([figures for figures, _ in parts]), sum(rows for _, rows in parts)


def means_of(parts: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Each figure's mean, out of (its sum, the number of rows that it is of) of each process."""
    names = dict.fromkeys(name for part in parts for name in part)
    having = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(total for total, _ in own) / sum(rows for _, rows in own) for name, own in having.items()}
