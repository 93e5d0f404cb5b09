"""An exponential moving average of weights, kept as a second network."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from ldm.training.trainer.sharded import own_part

M = TypeVar("M", bound=nn.Module)


def ramp(step: int, decay: float) -> float:
    """(1 + n) / (10 + n), at most `decay`, so that the first weights don't stay in the average of short runs (LDM)."""
    return min(decay, (1 + step) / (10 + step))


def clone(module: M) -> M:
    """The network that holds the average: a frozen copy in eval mode, which shares the parameters that don't train."""
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    return deepcopy(module, shared).eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module over all parameters that train; buffers are copied."""
    pairs = [(a, p) for a, p in zip(average.parameters(), module.parameters(), strict=True) if p.requires_grad]
    torch._foreach_lerp_([own_part(a) for a, _ in pairs], [own_part(p) for _, p in pairs], 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
