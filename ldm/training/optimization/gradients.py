"""What happens to gradients before an optimizer step: unscaling, norms and clipping, none of which makes the host
wait.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.training.trainer.sharded import own_part, whole

Parameters = list[nn.Parameter]


class Norms(NamedTuple):
    """Sets of gradients, each as the parts that this process holds and the set's L2 norm (); and the norm of all."""

    parts: list[tuple[list[Tensor], Tensor]]
    total: Tensor


def parameters_of(optimizer: torch.optim.Optimizer) -> Parameters:
    """All parameters that an optimizer trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def obeys_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step does nothing where its `found_inf`, a float32 tensor (), is 1.

    Then the host needn't wait for it. Fused AdamW obeys on CPU and CUDA, and so does this package's Muon; the kernels
    of MPS don't.
    """
    on_mps = any(parameter.device.type == "mps" for parameter in parameters_of(optimizer))
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not on_mps


def unscale(optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    """Divides the gradients by a `GradScaler`'s scale, where Lightning leaves that to the optimizer's own kernel.

    The scaler notes whether any gradient is infinite, and passes that to the kernel instead of the scale.
    """
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


@torch.no_grad()
def norms_of(parts: Iterable[Parameters]) -> Norms:
    """The norms of the gradients of sets of parameters; called by all processes."""
    gradients = [[p.grad for p in part if p.grad is not None] for part in parts]
    norms = [whole(torch.nn.utils.get_total_norm(part)) for part in gradients if part]
    held = [[own_part(gradient) for gradient in part] for part in gradients if part]
    if not norms:
        total = torch.zeros(())
    elif len(norms) == 1:
        total = norms[0]
    else:
        total = torch.linalg.vector_norm(torch.stack(norms))
    return Norms(list(zip(held, norms, strict=True)), total)


@torch.no_grad()
def clip_by_norm(norms: Norms, limit: float) -> None:
    """Scales each set of gradients whose norm is above `limit` down to that norm."""
    for part, norm in norms.parts:
        torch._foreach_mul_(part, (limit / (norm + 1e-6)).clamp(max=1.0))  # torch's formula


@torch.no_grad()
def clip_by_value(norms: Norms, limit: float) -> None:
    """Clamps each number of the gradients to +-limit."""
    for part, _ in norms.parts:
        torch._foreach_clamp_min_(part, -limit)
        torch._foreach_clamp_max_(part, limit)
