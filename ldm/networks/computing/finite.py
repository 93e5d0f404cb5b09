"""Checks for values that are infinite or NaN."""

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of weights with a value that is infinite or NaN."""
    return [name for name, tensor in weights.items() if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite. The extremes suffice, which takes no mask as large as the tensor."""
    if not tensor.numel() or not tensor.is_floating_point() or tensor.is_meta:
        return True
    given = tensor.detach()
    return bool(torch.stack(torch.aminmax(given.float() if given.itemsize == 1 else given)).isfinite().all())
