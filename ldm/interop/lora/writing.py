"""LoRAs in the form of other tools' files: diffusers' and kohya's files, and peft's folder."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.conditioning.text.clip_names import spellings
from ldm.interop.lora import kinds
from ldm.interop.lora import strength as lora_strength
from ldm.interop.lora.kinds import Lora

_TYPES = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR"}
_KOHYA = {kinds.DOWN: "lora_down.weight", kinds.UP: "lora_up.weight"}


def to_diffusers(lora: Lora, canonical: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under today's names of diffusers, and the metadata that carries ranks and alphas.

    There CLIP's modules are called without `text_model.`: peft matches the end of a name, so it fits both spellings.
    `canonical` are the modules' names as files have them. Raises UserError for kinds that diffusers doesn't read.
    """
    layers = kinds.by_module(lora.weights)
    others = sorted({kinds.kind_of(layer) for layer in layers.values()} - {"lora", "dora"})
    if others:
        raise UserError(
            f"diffusers reads LoRA and DoRA, and this is {' and '.join(others)}: to=peft makes a folder that "
            "PeftModel.from_pretrained(pipeline.unet, FOLDER) reads, to=kohya a file for web UIs."
        )
    config: dict[str, object] = {}
    for component in _components(lora):
        own = {spellings(m.partition(".")[2])[-1]: m for m in lora.alphas if m.startswith(f"{component}.")}
        ranks = {short: lora.rank(m) for short, m in own.items()}
        alphas = {short: lora.alphas[m] for short, m in own.items()}
        settings = _settings(ranks, alphas, "lora_alpha") | {"target_modules": sorted(own)}
        if _one_kind(layers[m] for m in own.values()) == "dora":
            settings["use_dora"] = True
        config |= {f"{component}.{key}": value for key, value in settings.items()}
    weights = {}
    for name, tensor in lora.weights.items():
        module, leaf = kinds.split_leaf(name)
        weights[f"{canonical[module]}.{leaf}"] = tensor
    return weights, {lora_strength.DIFFUSERS: json.dumps(config, sort_keys=True)}


def to_kohya(lora: Lora, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under kohya's and LyCORIS's `names` of modules, alphas among them.

    A LoKr of two whole matrices has no alpha in those tools: its factor is multiplied into the first.
    """
    state: dict[str, Tensor] = {}
    layers = kinds.by_module(lora.weights)
    for ours, theirs in names.items():
        alpha = lora.alphas[ours]
        for leaf, tensor in layers[ours].items():
            if leaf == kinds.MAGNITUDE:
                dimensions = layers[ours][kinds.DOWN].ndim
                state[f"{theirs}.dora_scale"] = tensor.reshape(-1, *[1] * (dimensions - 1))
            elif leaf == "lokr_w1" and not kinds.has_rank(layers[ours]) and alpha != 1:
                state[f"{theirs}.{leaf}"] = tensor * alpha
            else:
                state[f"{theirs}.{_KOHYA.get(leaf, leaf)}"] = tensor
        state[f"{theirs}.alpha"] = torch.tensor(alpha if kinds.has_rank(layers[ours]) else 1.0)
    return state


def to_peft(folder: Path, lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A folder for peft, `adapter_config.json` and `adapter_model.safetensors`, or one of each for every component.

    `shapes` are those of the modules' weights. CLIP's modules are called as transformers calls them since 5.6.
    """
    from safetensors.torch import save_file

    components = _components(lora)
    made = {}
    for component in components:  # whatever is refused is refused before anything is written
        layers = {spellings(m)[-1]: layer for m, layer in kinds.by_module(lora.of(component)).items()}
        alphas = {
            spellings(m.partition(".")[2])[-1]: a for m, a in lora.alphas.items() if m.startswith(f"{component}.")
        }
        weights = {spellings(m.partition(".")[2])[-1]: s for m, s in shapes.items() if m.startswith(f"{component}.")}
        own = {f"{m}.{leaf}": tensor for m, layer in layers.items() for leaf, tensor in layer.items()}
        made[component] = own, _peft_config(layers, alphas, weights)
    for component, (own, config) in made.items():
        place = folder if len(components) == 1 else folder / component
        place.mkdir(parents=True, exist_ok=True)
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in own.items()}
        save_file(named, place / "adapter_model.safetensors", {"format": "pt"})
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def most_frequent(values: Iterable[float]) -> float:
    """The most frequent value; if several are equally frequent, the smallest of them."""
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _components(lora: Lora) -> list[str]:
    return sorted({module.partition(".")[0] for module in lora.alphas})


def _settings(ranks: Mapping[str, int], alphas: Mapping[str, float], alpha_key: str) -> dict[str, Any]:
    """peft's settings of rank and alpha: the most frequent, and patterns for the other layers."""
    rank, alpha = most_frequent(ranks.values()), most_frequent(alphas.values())
    return {
        "r": int(rank),
        alpha_key: _plain(alpha),
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if a != alpha},
    }


def _one_kind(layers: Iterable[kinds.Layer]) -> str:
    """The kind of all layers. Raises UserError where there are several."""
    found = sorted({kinds.kind_of(layer) for layer in layers})
    if len(found) > 1:
        raise UserError(
            f"this adapter mixes {', '.join(found)}, but peft's config can name only one kind: write to=kohya."
        )
    return found[0]


def _peft_config(
    layers: Mapping[str, kinds.Layer], alphas: Mapping[str, float], weights: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    kind = _one_kind(layers.values())
    ranks = {module: kinds.rank(layer) for module, layer in layers.items()}
    about: dict[str, Any] = {"peft_type": _TYPES[kind], "target_modules": sorted(layers), "inference_mode": True}
    if kind in ("lora", "dora"):
        return about | {"use_dora": kind == "dora"} | _settings(ranks, alphas, "lora_alpha")
    about["use_effective_conv2d"] = any("hada_t1" in layer or "lokr_t2" in layer for layer in layers.values())
    if kind == "loha":
        return about | _settings(ranks, alphas, "alpha")
    return about | _lokr_settings(layers, alphas, weights)


def _lokr_settings(
    layers: Mapping[str, kinds.Layer], alphas: Mapping[str, float], weights: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The one way to split weights that gives peft the shapes of all layers. Raises UserError if there is none."""
    dims = {size for layer in layers.values() for size in (layer["lokr_w1"].shape if "lokr_w1" in layer else ())}
    for factor in (-1, *sorted(dims)):
        for both in (False, True):
            ranks = {m: _peft_rank(layer, weights[m], factor=factor, both=both) for m, layer in layers.items()}
            if all(ranks.values()):
                whole: dict[str, int] = {m: r for m, r in ranks.items() if r}
                scaled = {m: a if kinds.has_rank(layers[m]) else a * whole[m] for m, a in alphas.items()}
                settings = {"decompose_factor": factor, "decompose_both": both}
                return settings | _settings(whole, scaled, "alpha")
    raise UserError("peft splits all layers of a LoKr with one factor, but this LoKr has several: write to=kohya.")


def _peft_rank(layer: kinds.Layer, weight: tuple[int, ...], *, factor: int, both: bool) -> int | None:
    """The rank at which peft makes a layer's shapes; None if it makes others."""
    from peft.tuners.lokr.layer import factorization

    (out_left, out_right), (in_left, in_right) = factorization(weight[0], factor), factorization(weight[1], factor)
    left, right = max(out_left, in_left) / 2, max(out_right, in_right) / 2
    whole = max(1, math.ceil(right), math.ceil(left) if both else 1)  # the least rank that leaves both factors whole
    rank = kinds.rank(layer) if kinds.has_rank(layer) else whole
    kernel = weight[2:]
    shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (out_left, in_left)}
    if both and rank < left:
        shapes = {"lokr_w1_a": (out_left, rank), "lokr_w1_b": (rank, in_left)}
    if rank >= right:
        shapes["lokr_w2"] = (out_right, in_right, *kernel)
    elif "lokr_t2" in layer:
        shapes |= {"lokr_w2_a": (rank, out_right), "lokr_w2_b": (rank, in_right), "lokr_t2": (rank, rank, *kernel)}
    else:
        shapes |= {"lokr_w2_a": (out_right, rank), "lokr_w2_b": (rank, in_right * math.prod(kernel))}
    return rank if {leaf: tuple(tensor.shape) for leaf, tensor in layer.items()} == shapes else None


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
