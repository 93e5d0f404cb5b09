"""A model without the condition of augmentation, which other tools don't have: its label is zero for every image."""

from copy import copy
from typing import Any

import torch
from torch import nn

from ldm.common.registry import build, spec_of
from ldm.conditioning import Augmentation, Conditioner
from ldm.networks import DiT, UNet


def without_augmentation(model: nn.Module) -> nn.Module:
    """The model that computes the same without labels of augmentation; itself if it has none.

    The labels' columns of the linear layer that embeds the vector of conditions are dropped. Where nothing else is in
    the vector, the layer's bias goes into the time embedding. `model` isn't changed.
    """
    parts = dict(getattr(getattr(model, "conditioner", None), "parts", {}))
    network: Any = getattr(getattr(model, "denoiser", None), "network", None)
    labels = [name for name, part in parts.items() if isinstance(part, Augmentation)]
    if not labels or not isinstance(network, (UNet, DiT)) or network.class_embedding is None:
        return model
    kept = torch.cat([torch.full((part.vector_dim or 0,), name not in labels) for name, part in parts.items()])
    twin: Any = copy(model)
    denoiser: Any = model.denoiser
    twin._modules = {
        **model._modules,
        "denoiser": denoiser.around(_folded(network, kept), denoiser.reads or torch.float32),
        "conditioner": Conditioner({name: part for name, part in parts.items() if name not in labels}),
    }
    return twin


def _folded(network: Any, kept: torch.Tensor) -> nn.Module:
    """The network for a vector with only the columns `kept` (D,) bool; the others are always zero."""
    state, left = dict(network.state_dict()), int(kept.sum())
    if left:
        state["class_embedding.weight"] = state["class_embedding.weight"][:, kept]
    else:
        bias = state.pop("class_embedding.bias", None)
        del state["class_embedding.weight"]
        if bias is not None:
            state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + bias
    other = build({**spec_of(network), "vector_dim": left or None}, "network")
    other.load_state_dict(state)
    return other.to(next(network.parameters()).device).eval().requires_grad_(False)
