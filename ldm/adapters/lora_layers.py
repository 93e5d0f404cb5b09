"""peft's LoRA layers in a module: injected, read, scaled, merged and removed. No other module of ours uses peft.

The change of a weight W is scale * alpha / rank * B A (Hu et al. 2021, eq. 3), where A (rank, in) starts at random
and B (out, rank) at zero. For a convolution, A has its kernel and B is 1x1.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.interop.lora.formats import most_frequent

BASE = ".base_layer"


def adaptable(module: nn.Module) -> dict[str, Any]:
    """The layers that a LoRA can change, by name, whether there is a LoRA on them or not."""
    found: dict[str, Any] = {}
    for name, layer in module.named_modules():
        plain = name.removesuffix(BASE)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
            found[plain] = layer
    return found


def inject(
    module: nn.Module, name: str, ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float = 0.0
) -> None:
    """Puts a new LoRA called `name` on the layers of `module` in `ranks`. Only its weights require gradients."""
    peft = _peft()
    rank, alpha = most_frequent(ranks.values()), most_frequent(alphas.values())
    config = peft.LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=f"({'|'.join(map(re.escape, ranks))})",
        # Only for layers that differ, since peft tries each pattern on each layer.
        rank_pattern={f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(layer)}": a for layer, a in alphas.items() if a != alpha},
        lora_dropout=dropout,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about another LoRA on the module
        peft.inject_adapter_in_model(config, module, name)
    _activate(module)
    for weight in weights(module, name).values():
        weight.requires_grad_(True)


def injected(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """peft's layers with the LoRA `name`, or with any LoRA, each with the name of the layer that it replaces."""
    for where, layer in module.named_modules():
        if hasattr(layer, "base_layer") and (name is None or name in layer.lora_A):
            yield where, layer


def weights(module: nn.Module, name: str) -> dict[str, Tensor]:
    """`LAYER.lora_A.weight` and `LAYER.lora_B.weight` of the LoRA `name`: the tensors themselves."""
    found = {}
    for where, layer in injected(module, name):
        found[f"{where}.lora_A.weight"] = layer.lora_A[name].weight
        found[f"{where}.lora_B.weight"] = layer.lora_B[name].weight
    return found


def scale(module: nn.Module, name: str, factor: float) -> None:
    """Sets the factor of the LoRA `name` in every layer."""
    for _, layer in injected(module, name):
        layer.set_scale(name, factor)


def remove(module: nn.Module, name: str) -> None:
    """Removes the LoRA `name`. A layer without any LoRA becomes the original one again."""
    for where, layer in list(injected(module, name)):
        layer.delete_adapter(name)
        if not layer.lora_A:
            _replace(module, where, layer.base_layer)
    _activate(module)
    getattr(module, "peft_config", {}).pop(name, None)
    if not getattr(module, "peft_config", None):
        module.__dict__.pop("peft_config", None)


def merge(module: nn.Module) -> dict[str, Tensor]:
    """Adds every LoRA to the weights and removes it, and returns the earlier weights by the names of their layers.

    All sums are computed before any weight changes, so an error leaves the module as it was.
    """
    changes = {where: (layer, _sum(layer)) for where, layer in injected(module)}
    before = {}
    for where, (layer, changed) in changes.items():
        before[where] = layer.base_layer.weight.data
        layer.base_layer.weight.data = changed
        _replace(module, where, layer.base_layer)
    module.__dict__.pop("peft_config", None)
    return before


def _activate(module: nn.Module) -> None:
    """Makes all LoRAs act together: peft switches the earlier ones off when it adds one."""
    for _, layer in injected(module):
        layer.set_adapter(list(layer.lora_A))
    module.requires_grad_(False)


def _sum(layer: Any) -> Tensor:
    """The weight of peft's `layer` plus the changes of all its LoRAs, added in float32."""
    weight = layer.base_layer.weight.data
    total = weight.float()
    for name in layer.lora_A:
        total = total + layer.get_delta_weight(name).float()
    return total.to(weight.dtype).contiguous(memory_format=_format(weight))


def _format(weight: Tensor) -> Any:
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _replace(module: nn.Module, where: str, layer: nn.Module) -> None:
    parent, _, own = where.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("LoRA needs peft: pip install 'ldm[lora]'.") from None
    return peft
