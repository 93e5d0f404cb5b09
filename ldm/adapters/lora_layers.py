"""peft's layers of LoRA, DoRA, LoHa and LoKr in a module: injected, read, scaled, merged and removed. No other module
of ours computes with peft.

The change of a weight W is scale * alpha / rank * B A (Hu et al. 2021, eq. 3), where A (rank, in) starts at random
and B (out, rank) at zero. For a convolution, A has its kernel and B is 1x1. `ldm.interop.lora.kinds` has the changes of
the other kinds. A layer of peft's holds adapters of one class. Where there are several, LoHa is around LoRA,
and LoKr around both. Adapters act from the inside: a DoRA scales the weight with the LoRAs and DoRAs put on before it.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.interop.lora import kinds
from ldm.interop.lora.writing import most_frequent

BASE = ".base_layer"
_SIGNS = ("lora_A", "hada_w1_a", "lokr_w1")  # of peft's classes, from the inside
_CLASSES = {"lora": 0, "dora": 0, "loha": 1, "lokr": 2}


def adaptable(module: nn.Module) -> dict[str, Any]:
    """The layers that a LoRA can change, by name, whether there is a LoRA on them or not."""
    found: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
            found[_plain_name(name)] = layer
    return found


def inject(
    module: nn.Module,
    name: str,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    dropout: float = 0.0,
    kind: str = "lora",
) -> None:
    """Puts a new LoRA called `name` on the layers of `module` in `ranks`. Only its weights require gradients.

    It may be called with several kinds, each for other layers.
    """
    config = _config(kind, ranks, alphas, dropout)
    around = _take_off_outer(module, ranks, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about another LoRA on the module
        _peft().inject_adapter_in_model(config, module, name)
    if kind == "dora":
        _take_any_layout(module, name)
    for path, outer in around.items():
        outer[-1].base_layer = module.get_submodule(path)
        _replace(module, path, outer[0])
    _activate(module)
    for weight in weights(module, name).values():
        weight.requires_grad_(True)


def put(module: nn.Module, name: str, given: Mapping[str, Tensor]) -> None:
    """Gives the LoRA `name`, which is in the layers, the weights `given`, frozen."""
    layers = kinds.by_module(given)
    for where, layer in injected(module, name):
        if hasattr(layer, "lora_A"):
            for leaf, weight in _weights_of(layer, name).items():
                weight.data.copy_(layers[where][leaf].reshape(weight.shape))
                weight.requires_grad_(False)
        else:
            _put_lycoris(layer, name, layers[where])
        layer.eval()


def injected(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """peft's layers with the LoRA `name`, or with any LoRA, each with the name of the layer that it replaces."""
    for path, layer in _wrappers(module, name):
        yield _plain_name(path), layer


def weights(module: nn.Module, name: str) -> dict[str, Tensor]:
    """`LAYER.lora_A.weight` and the other tensors of the LoRA `name`: the tensors themselves."""
    found: dict[str, Tensor] = {}
    for where, layer in injected(module, name):
        found |= {f"{where}.{leaf}": weight for leaf, weight in _weights_of(layer, name).items()}
    return found


def alphas(module: nn.Module, name: str) -> dict[str, float]:
    """alpha of the LoRA `name` by layer, in the convention of `ldm.interop.lora.kinds`."""
    found: dict[str, float] = {}
    for where, layer in injected(module, name):
        alpha = float(layer.lora_alpha[name] if hasattr(layer, "lora_A") else layer.alpha[name])
        has_rank = kinds.has_rank(_weights_of(layer, name))
        found[where] = alpha if has_rank else alpha / layer.r[name]
    return found


def names_in_module(module: nn.Module, name: str) -> dict[str, str]:
    """For each key of `weights`, the weight's name in the module's state."""
    found = {}
    for path, layer in _wrappers(module, name):
        for leaf in _weights_of(layer, name):
            stem, dot, end = leaf.partition(".")
            own = f"{stem}.{name}.weight" if dot or leaf == kinds.MAGNITUDE else f"{stem}.{name}"
            found[f"{_plain_name(path)}.{leaf}"] = f"{path}.{own}"
    return found


def scale(module: nn.Module, name: str, factor: float) -> None:
    """Sets the factor of the LoRA `name` in every layer.

    A DoRA scales D within its norm, as peft does; at 0 it is off, so that the base is as it was.
    """
    for _, layer in injected(module, name):
        layer.set_scale(name, factor)
        layer.set_adapter(_active(layer))
        layer.requires_grad_(False)


def remove(module: nn.Module, name: str) -> None:
    """Removes the LoRA `name`. A layer without any LoRA becomes the original one again."""
    for path, layer in list(_wrappers(module, name)):
        layer.delete_adapter(name)
        if not layer.r:
            _replace(module, path, layer.base_layer)
    _activate(module)
    getattr(module, "peft_config", {}).pop(name, None)
    if not getattr(module, "peft_config", None):
        module.__dict__.pop("peft_config", None)


def merge(module: nn.Module) -> dict[str, Tensor]:
    """Adds every LoRA to the weights and removes it, and returns the earlier weights by the names of their layers.

    All sums are computed before any weight changes, so an error leaves the module as it was.
    """
    outermost = [(path, layer) for path, layer in _wrappers(module) if not path.endswith(BASE)]
    changes = {path: (layer.get_base_layer(), _merged(layer)) for path, layer in outermost}
    before = {}
    for path, (base, changed) in changes.items():
        before[path] = base.weight.data
        base.weight.data = changed
        _replace(module, path, base)
    module.__dict__.pop("peft_config", None)
    return before


def _config(kind: str, ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float) -> Any:
    peft = _peft()
    rank, alpha = most_frequent(ranks.values()), most_frequent(alphas.values())
    shared = {
        "r": int(rank),
        "target_modules": f"({'|'.join(map(re.escape, ranks))})",
        # of the others alone: peft tries each pattern on each layer
        "rank_pattern": {f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(layer)}": a for layer, a in alphas.items() if a != alpha},
    }
    if kind in ("lora", "dora"):
        return peft.LoraConfig(**shared, lora_alpha=alpha, lora_dropout=dropout, use_dora=kind == "dora")
    return (peft.LoHaConfig if kind == "loha" else peft.LoKrConfig)(**shared, alpha=alpha)


def _take_any_layout(module: nn.Module, name: str) -> None:
    """Makes the DoRAs of convolutions work in any memory format: peft's own code needs contiguous matrices."""
    for _, layer in injected(module, name):
        magnitudes = layer.lora_magnitude_vector[name]
        if layer.lora_A[name].weight.ndim == 4:
            cls: Any = type(magnitudes)
            magnitudes.__class__ = _any_layout(cls)


@cache
def _any_layout(cls: Any) -> Any:
    def get_lora_weight(self: Any, lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> Tensor:
        """B A as a matrix: (out, in), or for a convolution (out, in * kernel height * kernel width)."""
        return lora_B.weight.flatten(1) @ lora_A.weight.flatten(1)

    return type(cls.__name__, (cls,), {"get_lora_weight": get_lora_weight})


def _take_off_outer(module: nn.Module, names: Iterable[str], kind: str) -> dict[str, list[Any]]:
    """Takes off peft's layers that belong around those of a `kind`, the outermost first; returns them by the layer's
    name.
    """
    taken: dict[str, list[Any]] = {}
    for name in names:
        layer: Any = module.get_submodule(name)
        while hasattr(layer, "base_layer") and not any(hasattr(layer, s) for s in _SIGNS[: _CLASSES[kind] + 1]):
            taken.setdefault(name, []).append(layer)
            layer = layer.base_layer
        if name in taken:
            _replace(module, name, layer)
    return taken


def _plain_name(path: str) -> str:
    """The name of a layer, without the parts that adapters around it add."""
    return path.split(BASE)[0]


def _wrappers(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """peft's layers by their paths, the outer before the inner."""
    for path, layer in module.named_modules():
        if hasattr(layer, "base_layer") and (name is None or name in layer.r):
            yield path, layer


def _weights_of(layer: Any, name: str) -> dict[str, Tensor]:
    """The tensors of the LoRA `name` in one layer, by leaf."""
    if not hasattr(layer, "lora_A"):
        leaves = (leaf for leaf in layer.adapter_layer_names if name in getattr(layer, leaf))
        return {leaf: getattr(layer, leaf)[name] for leaf in leaves}
    found = {kinds.DOWN: layer.lora_A[name].weight, kinds.UP: layer.lora_B[name].weight}
    if name in layer.lora_magnitude_vector:
        found[kinds.MAGNITUDE] = layer.lora_magnitude_vector[name].weight
    return found


def _put_lycoris(layer: Any, name: str, given: kinds.Layer) -> None:
    """Replaces the tensors that peft made by the given ones, which may be factored differently."""
    base = layer.get_base_layer().weight
    for leaf in layer.adapter_layer_names:
        own = getattr(layer, leaf)
        if name in own:
            del own[name]
        if leaf in given:
            own[name] = nn.Parameter(given[leaf].to(base, copy=True), requires_grad=False)


def _activate(module: nn.Module) -> None:
    """Makes all LoRAs act together: peft switches the earlier ones off when it adds one."""
    for _, layer in injected(module):
        layer.set_adapter(_active(layer))
    module.requires_grad_(False)


def _active(layer: Any) -> list[str]:
    """The LoRAs of a layer that act: all but a DoRA at scale 0."""
    return [name for name in layer.r if layer.scaling[name] != 0 or kinds.MAGNITUDE not in _weights_of(layer, name)]


def _merged(layer: Any) -> Tensor:
    """The weight that computes the same as the layer and the layers inside it, merged in their order."""
    chain = [layer]
    while hasattr(chain[-1].base_layer, "base_layer"):
        chain.append(chain[-1].base_layer)
    weight = chain[-1].base_layer.weight.data
    total = weight.float()
    for wrapper in reversed(chain):
        for name in _active(wrapper):
            change = wrapper.get_delta_weight(name).detach().float()
            total = total + change
            if kinds.MAGNITUDE in _weights_of(wrapper, name):
                total = total * _dora_factor(wrapper.lora_magnitude_vector[name], weight.float(), change)
    return total.to(weight.dtype).contiguous(memory_format=_format(weight))


def _dora_factor(magnitudes: Any, weight: Tensor, change: Tensor) -> Tensor:
    """m / |W + D| by output channel, in dimensions that fit the weight's."""
    norm = magnitudes.get_weight_norm(weight, change, scaling=1).detach()
    return (magnitudes.weight.detach() / norm).reshape(-1, *[1] * (weight.ndim - 1))


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
