"""A class as a condition."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning.part import Part
from ldm.networks import Cond

_log = logging.getLogger("ldm")


def classes_line(labels: Mapping[str, int], most: int = 20) -> str:
    """The first `most` classes in words, '2 classes: 0 = cat, 1 = dog', or '2 classes: 0, 1' if they have no names."""
    unnamed = all(name == str(i) for name, i in labels.items())
    shown = [name if unnamed else f"{i} = {name}" for name, i in labels.items()][:most]
    count = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
    return f"{count}: {', '.join(shown)}{', ...' if len(labels) > most else ''}"


@register
class ClassLabel(Part):
    """A class as a vector for the time embedding and as one token for cross-attention.

    The index `classes` is the null class.
    """

    column = "label"

    def __init__(self, classes: int, names: list[str] | None = None, dim: int = 128, drop_prob: float = 0.1):
        super().__init__(drop_prob)
        self.classes, self.names = classes, list(names or [])
        self.token_dim = self.vector_dim = dim
        self.embedding = nn.Embedding(classes + 1, dim)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes and their names, from the data."""
        names = [str(name) for name in table.classes]
        count = len(names) or int(table.columns["label"].max()) + 1
        return {"classes": count, "names": names}

    def null_values(self, n: int) -> Tensor:
        """The null class `n` times, (n,) int64."""
        return torch.full((n,), self.classes)

    @property
    def table(self) -> dict[str, int]:
        """The number of each class by its name. If several classes have the same name, the first one counts."""
        found: dict[str, int] = {}
        for i, name in enumerate(self._all_names):
            found.setdefault(name, i)
        return found

    @property
    def _all_names(self) -> list[str]:
        return self.names or [str(i) for i in range(self.classes)]

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The classes by name, since a number may be the name of another class."""
        names, table = self._all_names, self.table
        return {self.column: [names[i] if table[names[i]] == i else i for i in batch[self.column].tolist()]}

    def parse(self, values: Any) -> Tensor:
        """Names of classes, or their numbers if no class has that name -> (B,) int64."""
        table = self.table
        return torch.tensor([self._index(v, table) for v in values])

    def _index(self, value: Any, table: Mapping[str, int]) -> int:
        if str(value) in table:
            return table[str(value)]
        try:
            index = int(str(value))
        except ValueError:
            raise UserError(f"no class is called '{value}'.{did_you_mean(str(value), self.names)}") from None
        equal = [i for name, i in table.items() if name.isdecimal() and int(name) == index]
        if len(equal) == 1:  # 1 stands for 001
            return equal[0]
        if not 0 <= index < self.classes:
            raise UserError(self._unknown(index, table))
        if any(name.isdecimal() for name in self.names):
            _log.warning("no class is called %s: read as the number of class '%s'", index, self.names[index])
        return index

    def _unknown(self, index: int, table: Mapping[str, int]) -> str:
        """The message for an index that no class has. Names are listed, since they may be numbers of other classes."""
        if any(name.isdecimal() and int(name) != i for name, i in table.items()):
            return f"no class is called {index}: this model knows {classes_line(table)}."
        known = f": {classes_line(table)}" if self.names else ""
        return f"label {index} is out of range: this model knows 0 to {self.classes - 1}{known}."

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Class numbers (B,) -> `vector` (B, D) and `tokens` (B, 1, D)."""
        labels = values if drop is None else values.masked_fill(drop, self.classes)
        vector = self.embedding(labels)  # (B, D)
        return Cond(vector=vector, tokens=vector[:, None], mask=labels.new_ones(len(labels), 1, dtype=torch.bool))
