"""What was done to a variant of a training image as a condition, so that it doesn't leak into what is generated."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.common.registry import register
from ldm.conditioning.part import Part
from ldm.networks import Cond


@register
class Augmentation(Part):
    """The label of non-leaking augmentation (`data.augment=`), added to the time embedding (Karras et al. 2022, F.2).

    It is zero for unchanged images, and always zero when images are generated: no user can pass another. Guidance
    leaves it alone.
    """

    column = "augment"
    follows_guidance = False

    def __init__(self, labels: int = 11):
        super().__init__(0.0)
        self.vector_dim = labels

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The number of labels of an augmentation, if the data have them."""
        return {"labels": int(table.columns[cls.column].shape[1])} if cls.column in table.columns else {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Nothing: images are always generated as without augmentation."""
        return ()

    def null_values(self, n: int) -> Tensor:
        """Zeros (n, labels), which stand for no augmentation."""
        return torch.zeros(n, self.vector_dim or 0)

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Labels (B, labels) -> `vector` of the same shape."""
        return Cond(vector=values.float())
