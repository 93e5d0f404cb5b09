"""Means over samples, whatever batches and processes they came in."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.common.devices import send
from ldm.training.runs.processes import gathered

QUARTERS = 4


class Split(NamedTuple):
    """A figure of samples in four bands: for each band the figure's sum and the number of samples, both (4,)."""

    sums: Tensor
    counts: Tensor


def by_quarter(values: Tensor, u: Tensor, weights: Tensor | None = None) -> Split:
    """`values` (B,), which count by their `weights` (B,), split by the quarter of (0, 1) that `u` (B,) lies in. The
    host doesn't wait for the device."""
    inside = torch.arange(QUARTERS, device=u.device) == (u[:, None] * QUARTERS).floor()  # (B, 4)
    spread = values.detach().float()[:, None].expand(-1, QUARTERS)
    counts = inside.float() if weights is None else inside * weights[:, None]
    return Split((spread.masked_fill(~inside, 0.0) * counts).sum(0), counts.sum(0))


class Means:
    """Means of named figures over all samples that were added. Adding doesn't make the host wait for the device.

    A `Split` named `loss_q` gives `loss_q1` to `loss_q4`, without the bands that no sample fell into.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # the sum of each figure, and the number of rows in it
        self._splits: dict[str, Tensor] = {}  # the sums and counts of each figure by band, (2, 4)
        self._rows = 0

    def add(self, figures: Mapping[str, Tensor | Split], rows: int) -> None:
        """Adds figures (), each the mean over the same `rows` samples. Splits are left to `add_splits`."""
        if not rows:
            return
        self._rows += rows
        for name, value in figures.items():
            if isinstance(value, Split):
                continue
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value.detach().float() * rows, count + rows

    def add_splits(self, figures: Mapping[str, Tensor | Split]) -> None:
        """Adds the splits among `figures`."""
        for name, value in figures.items():
            if isinstance(value, Split):
                own = torch.stack(value)
                before = self._splits.get(name)
                self._splits[name] = own if before is None else send(before, own.device) + own

    def pending(self) -> dict[str, list[list[float]]]:
        """The splits of all processes that aren't taken yet, as plain data for a checkpoint. All processes call it."""
        parts = gathered({name: own.tolist() for name, own in self._splits.items()})
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.tensor([part[name] for part in parts if name in part]).sum(0).tolist() for name in names}

    def restore(self, pending: Mapping[str, list[list[float]]]) -> None:
        """Takes over the splits of a checkpoint."""
        self._splits = {name: torch.tensor(own) for name, own in pending.items()}

    def taken(self) -> tuple[dict[str, float], int]:
        """The means over the rows of all processes and the number of rows; then starts again from nothing.

        All processes call it, and the host waits here. A figure that only some batches have is the mean over those.
        """
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
    """Each figure's mean, given the (sum, number of rows) of each process that has the figure."""
    means = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        pairs = [part[name] for part in parts if name in part]
        means[name] = sum(total for total, _ in pairs) / sum(rows for _, rows in pairs)
    return means
