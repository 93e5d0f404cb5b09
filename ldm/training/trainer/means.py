"""Means over samples, whatever batches and processes they came in."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.common.devices import send
from ldm.training.runs.processes import gathered

QUARTERS = 4


class Split(NamedTuple):
    """A figure of samples that fall into four bands: in each band its sum and the number of samples, both (4,)."""

    sums: Tensor
    counts: Tensor


def by_quarter(values: Tensor, u: Tensor) -> Split:
    """`values` (B,) split by the quarter of (0, 1) in which `u` (B,) lies. The host waits for nothing."""
    inside = torch.arange(QUARTERS, device=u.device) == (u[:, None] * QUARTERS).floor()  # (B, 4)
    spread = values.detach().float()[:, None].expand(-1, QUARTERS)
    return Split(spread.masked_fill(~inside, 0.0).sum(0), inside.float().sum(0))


class Means:
    """Means of named figures over all samples that were added; adding makes the host wait for nothing.

    Of a `Split` named `loss_q` they are `loss_q1` to `loss_q4`, without those that no sample fell into.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of each figure, and the rows that they are of
        self._splits: dict[str, Tensor] = {}  # of each figure, sums and counts by band, (2, 4)
        self._rows = 0

    def add(self, figures: Mapping[str, Tensor | Split], rows: int) -> None:
        """Figures () that are each the mean over the same `rows` samples; splits are left to `add_splits`."""
        if not rows:
            return
        self._rows += rows
        for name, value in figures.items():
            if isinstance(value, Split):
                continue
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value.detach().float() * rows, count + rows

    def add_splits(self, figures: Mapping[str, Tensor | Split]) -> None:
        for name, value in figures.items():
            if isinstance(value, Split):
                own = torch.stack(value)
                before = self._splits.get(name)
                self._splits[name] = own if before is None else send(before, own.device) + own

    def pending(self) -> dict[str, list[list[float]]]:
        """The splits of all processes that aren't taken yet, as plain data for a checkpoint. Called by all."""
        parts = gathered({name: own.tolist() for name, own in self._splits.items()})
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.tensor([part[name] for part in parts if name in part]).sum(0).tolist() for name in names}

    def restore(self, pending: Mapping[str, list[list[float]]]) -> None:
        self._splits = {name: torch.tensor(own) for name, own in pending.items()}

    def taken(self) -> tuple[dict[str, float], int]:
        """The means over the rows of all processes, and how many those are; then it begins anew. Called by all, and
        the host waits here. What only some batches have is the mean over theirs."""
        sums = torch.stack([total for total, _ in self._sums.values()]).tolist() if self._sums else []
        counts = [count for _, count in self._sums.values()]
        own: dict[str, tuple[float, float]] = dict(zip(self._sums, zip(sums, counts, strict=True), strict=True))
        for name, split in self._splits.items():
            bands = enumerate(zip(*split.tolist(), strict=True), 1)
            own |= {f"{name}{i}": (total, count) for i, (total, count) in bands if count}
        parts = gathered((own, self._rows))
        self._sums, self._splits, self._rows = {}, {}, 0
        return means_of([figures for figures, _ in parts]), sum(rows for _, rows in parts)


def means_of(parts: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Each figure's mean, out of (its sum, the number of rows that it is of) of each process."""
    names = dict.fromkeys(name for part in parts for name in part)
    having = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(total for total, _ in own) / sum(rows for _, rows in own) for name, own in having.items()}
