"""peft's LoRA layers in a module: put in, read, scaled, merged, taken out. Nothing else here knows peft.

The change of a weight W is scale * alpha / rank * B A (Hu et al. 2021, eq. 3), where A (rank, in) is drawn at random
and B (out, rank) starts at zero; of a convolution A has its kernel, and B is 1x1.
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
    """The layers that a LoRA can change, by name, whether there is one on them or not."""
    found: dict[str, Any] = {}
    for name, layer in module.named_modules():
        plain = name.removesuffix(BASE)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
            found[plain] = layer
    return found


def inject(
    module: nn.Module, name: str, ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float = 0.0
) -> None:
    """Puts a LoRA called `name`, new, on the layers of `module` that `ranks` lists. It alone requires gradients."""
    peft = _peft()
    rank, alpha = most_frequent(ranks.values()), most_frequent(alphas.values())
    config = peft.LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=f"({'|'.join(map(re.escape, ranks))})",
        # of the others alone: peft tries each pattern on each layer
        rank_pattern={f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(layer)}": a for layer, a in alphas.items() if a != alpha},
        lora_dropout=dropout,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is another LoRA already
        peft.inject_adapter_in_model(config, module, name)
    _activate(module)
    for weight in weights(module, name).values():
        weight.requires_grad_(True)


def holding(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """The layers of peft's with the LoRA `name`, or with any, by the name of the layer that they took the place of."""
    for where, layer in module.named_modules():
        if hasattr(layer, "base_layer") and (name is None or name in layer.lora_A):
            yield where, layer


def weights(module: nn.Module, name: str) -> dict[str, Tensor]:
    """`LAYER.lora_A.weight` and `LAYER.lora_B.weight` of the LoRA `name`: the tensors themselves."""
    found = {}
    for where, layer in holding(module, name):
        found[f"{where}.lora_A.weight"] = layer.lora_A[name].weight
        found[f"{where}.lora_B.weight"] = layer.lora_B[name].weight
    return found


def scale(module: nn.Module, name: str, factor: float) -> None:
    """Sets the factor of the LoRA `name` in every layer."""
    for _, layer in holding(module, name):
        layer.set_scale(name, factor)


def remove(module: nn.Module, name: str) -> None:
    """Takes the LoRA `name` out again; a layer without any is the one it was."""
    for where, layer in list(holding(module, name)):
        layer.delete_adapter(name)
        if not layer.lora_A:
            _replace(module, where, layer.base_layer)
    _activate(module)
    getattr(module, "peft_config", {}).pop(name, None)
    if not getattr(module, "peft_config", None):
        module.__dict__.pop("peft_config", None)


def merge(module: nn.Module) -> dict[str, Tensor]:
    """Adds every LoRA to the weights and takes it out: the module is a plain one again. Returns the weights of before.

    Raises nothing halfway: the sums are made before any weight changes.
    """
    changes = {where: (layer, _sum(layer)) for where, layer in holding(module)}
    before = {}
    for where, (layer, changed) in changes.items():
        before[where] = layer.base_layer.weight.data
        layer.base_layer.weight.data = changed
        _replace(module, where, layer.base_layer)
    module.__dict__.pop("peft_config", None)
    return before


def _activate(module: nn.Module) -> None:
    """Has all LoRAs that there are act together: peft switches off those that the newest isn't beside."""
    for _, layer in holding(module):
        layer.set_adapter(list(layer.lora_A))
    module.requires_grad_(False)


def _sum(layer: Any) -> Tensor:
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
