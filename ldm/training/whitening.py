"""The mean and std by which stage two's latents are whitened: per channel, LDM's one factor, or a file's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError


def one_scale(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """LDM's scale factor: all latents are divided by the std of all of them, and none is shifted (Rombach et al. 2022,
    appendix G)."""
    variance = std.square().mean() + mean.var(correction=0)
    return torch.zeros_like(mean), variance.sqrt().expand_as(std).clone()


WHITENING: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "channels": lambda mean, std: (mean, std),
    "scalar": one_scale,
}


def file_whitening(first_stage: Any) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel as the autoencoder's diffusers file gives them: z' = (z - shift) * scale."""
    if first_stage.scaling is None:
        raise UserError(
            "whitening=file: only a diffusers folder declares its whitening, and the first stage "
            "isn't one: use channels."
        )
    mean, std = first_stage.scaling
    return torch.tensor(mean), torch.tensor(std)
