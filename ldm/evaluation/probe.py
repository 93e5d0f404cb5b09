"""Whether generated images show the label of their condition, as read by a linear probe on features of real images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.randomness import permutation
from ldm.data.storage.table import Table
from ldm.evaluation.measures.classifier import label_columns
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import ImageSet
from ldm.evaluation.report import spread

RIDGE = 0.1  # of the features' variance, times the number of images: the best on held-out emoji, of 1e-2 to 30


@dataclass(frozen=True)
class LinearProbe:
    """Least squares from standardised features to one-hot labels, with a ridge (Hastie et al. 2009, section 4.2)."""

    mean: Tensor
    std: Tensor
    weight: Tensor  # (D + 1, classes)

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int) -> "LinearProbe":
        """`features` (N, D) of real images and `labels` (N,) class numbers from 0."""
        x = features.double()
        mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
        x = _with_one((x - mean) / std)
        y = F.one_hot(labels.long(), classes).double()
        ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        ridge[-1, -1] = 0
        return cls(mean, std, torch.linalg.solve(x.T @ x + ridge, x.T @ y))

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of `features` (N, D) that are read as their `labels` (N,)."""
        read = _with_one((features.double() - self.mean) / self.std) @ self.weight
        return float((read.argmax(1) == labels).double().mean())


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def label_codes(train: Table, val: Table, rows: np.ndarray) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each column, class numbers in one numbering: of all training images, all validation images, and `rows`.

    A class that training doesn't have is -1, and nothing is read as that.
    """
    found = {}
    for name in label_columns(train):
        if name in val.columns:
            kinds = np.unique(np.asarray(train.columns[name]))
            codes = [_coded(np.asarray(table.columns[name]), kinds) for table in (train, val)]
            found[name] = (codes[0], codes[1], codes[1][torch.from_numpy(rows)])
    return found


def probe_figures(
    generated: list[Tensor],
    labels: dict[str, tuple[Tensor, Tensor, Tensor]],
    *,
    tables: tuple[Table, Table],
    features: Features,
    cache: Path,
    most: int,
) -> dict[str, Any]:
    """For each column, the shares of generated images, and of held-out real images, whose label a linear probe reads.

    `generated` are the features of the images of each seed, and `labels` is the result of `label_codes`. The probe
    learns from at most `most` training images.
    """
    if not labels:
        return {}
    seen, held = (np.sort(permutation(0, 0, table.originals)[:most]) for table in tables)
    x = features.of(ImageSet.of_table(tables[0], seen, "training images"), cache)
    y = features.of(ImageSet.of_table(tables[1], held, "validation images"), cache)
    figures: dict[str, Any] = {}
    for name, (train, val, wanted) in labels.items():
        probe = LinearProbe.fit(x, train[torch.from_numpy(seen)], int(train.max()) + 1)
        figures[f"{name} read as asked (linear probe)"] = spread([probe.accuracy(one, wanted) for one in generated])
        figures[f"{name} of held-out real images"] = probe.accuracy(y, val[torch.from_numpy(held)])
    return figures


def _coded(values: np.ndarray, kinds: np.ndarray) -> Tensor:
    at = np.searchsorted(kinds, values).clip(max=len(kinds) - 1)
    return torch.from_numpy(np.where(kinds[at] == values, at, -1))
