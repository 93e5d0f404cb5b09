"""An exponential moving average of weights, kept as a second network."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def ramp(step: int, decay: float) -> float:
    """(1 + n) / (10 + n), at most `decay`: short runs must not average in their first weights (LDM's ramp)."""
    return min(decay, (1 + step) / (10 + step))


def clone(module: M) -> M:
    """The network that holds the average: a frozen copy in eval mode."""
    return deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module over all parameters at once; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
