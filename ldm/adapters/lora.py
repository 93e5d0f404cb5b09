"""LoRA on a model: its layers, its model folder, and the files of other tools."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters import lora_layers as layers
from ldm.adapters.adapter import Adapter
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning import FrozenText, Text
from ldm.conditioning.text.clip_names import canonical, installed
from ldm.interop.lora import base_differences, formats, kinds
from ldm.interop.lora.tensor_names import is_of_text
from ldm.networks import Controlled

UNET, TEXT = "unet", "text_encoder"  # with _2 for a second one, as LoRA files call them
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
PRESETS = ("attention", "convolutions", "linear", "all")


@register
class LoraAdapter(Adapter):
    """The two small matrices of each changed layer, `unet.LAYER.lora_A.weight` and `.lora_B.weight`, or the tensors of
    another of `ldm.interop.lora.kinds`.

    `alphas` are by `unet.LAYER`; names of layers in the text encoder begin with `text_encoder.`. `shapes` are those of
    the weights. `trigger` is the word that it was trained with, recorded for information. `few` has the model's
    `sampling` and `distilled` while a LoRA for few steps is on it.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        alphas: Mapping[str, float],
        trigger: str | None = None,
        base: Mapping[str, str] | None = None,
        few: Mapping[str, Any] | None = None,
    ):
        super().__init__(base)
        self.alphas, self.trigger, self.few = dict(alphas), trigger, dict(few or {})
        for name, shape in shapes.items():
            _grow(self, name, nn.Parameter(torch.empty(tuple(shape)), requires_grad=False))

    @classmethod
    def of_tensors(
        cls,
        weights: Mapping[str, Tensor],
        alphas: Mapping[str, float],
        trigger: str | None = None,
        base: Mapping[str, str] | None = None,
        few: Mapping[str, Any] | None = None,
    ) -> "LoraAdapter":
        """A LoRA with the given tensors as weights, which aren't copied."""
        about = {"few": few} if few else {}
        adapter = cls({name: list(tensor.shape) for name, tensor in weights.items()}, alphas, trigger, base, **about)
        for name, tensor in weights.items():
            _grow(adapter, name, nn.Parameter(tensor.detach(), requires_grad=False))
        return adapter

    @property
    def lora(self) -> formats.Lora:
        """Weights and alphas, as in files."""
        return formats.Lora(dict(self.state_dict()), dict(self.alphas))

    def attach(self, model: Any, name: str, scale: float) -> None:
        """Puts the weights into peft's layers on `model`; the weights of the base don't change."""
        lora, inner = self.lora, inner_name(name)
        formats.check_strength(lora, scale, f"the LoRA '{name}'")
        fitted = {}
        for component, module in components(model, {m.partition(".")[0] for m in self.alphas}).items():
            found = layers.adaptable(module)
            given = _installed(kinds.by_module(lora.of(component)), found)
            _check_fit(found, given, f"the LoRA '{name}'")
            fitted[component] = module, given, _installed(_of(self.alphas, component), found)
        for module, given, alphas in fitted.values():
            _inject(module, inner, given, alphas)
            layers.scale(module, inner, scale)


def start(
    model: Any,
    name: str,
    *,
    rank: int,
    alpha: float | None,
    wanted: str | Sequence[str],
    text_encoder: bool = False,
    dropout: float = 0.0,
    kind: str = "lora",
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> None:
    """Puts a new LoRA of a `kind` on `model`, ready to train; as yet it changes nothing. `wanted` are the layers: see
    `chosen`. The patterns give layers that match another rank or alpha, where the first match counts; alpha is the rank
    unless given.
    """
    if text_encoder and not any(isinstance(part, Text) for part in model.conditioner.parts.values()):
        raise UserError("text_encoder=true adapts the built-in text encoder, which this base doesn't have.")
    parts = components(model, {UNET, TEXT} if text_encoder else {UNET})
    found = {kind: layers.adaptable(module) for kind, module in parts.items()}
    _check_targets(found, wanted, "targets")
    meant = {component: {n: found[component][n] for n in chosen(found[component], wanted)} for component in found}
    _check_targets(meant, list(rank_pattern or {}), "rank_pattern")
    _check_targets(meant, list(alpha_pattern or {}), "alpha_pattern")
    for component, module in parts.items():
        named = meant[component]
        ranks = {n: _by_pattern(rank_pattern, n, named[n]) or rank for n in named}
        alphas = {n: _by_pattern(alpha_pattern, n, named[n]) or alpha or float(ranks[n]) for n in named}
        if named:
            layers.inject(module, name, ranks, alphas, dropout=dropout, kind=kind)


def trained(
    model: Any, name: str, trigger: str | None, base: Mapping[str, str], few: Mapping[str, Any] | None = None
) -> LoraAdapter:
    """The LoRA `name` on `model` as an adapter to save. It shares the tensors with the model."""
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for kind, module in components(model, None).items():
        weights |= {f"{kind}.{k}": v for k, v in layers.weights(module, name).items()}
        alphas |= {f"{kind}.{k}": alpha for k, alpha in layers.alphas(module, name).items()}
    return LoraAdapter.of_tensors(weights, alphas, trigger, base=base, few=few)


def names_in_model(model: Any, name: str) -> dict[str, str]:
    """For each weight of the LoRA `name`, as named in `trained`, its name in the model's state."""
    prefixes = {module: prefix for prefix, module in model.named_modules()}
    found = {}
    for kind, module in components(model, None).items():
        for ours, own in layers.names_in_module(module, name).items():
            found[f"{kind}.{ours}"] = f"{prefixes[module]}.{own}"
    return found


def chosen(names: Mapping[str, nn.Module], wanted: str | Sequence[str]) -> list[str]:
    """The names of layers that match `wanted`: attention, convolutions, linear, all, or parts of names (`attn2`,
    `mid_block`, `up_blocks.*.conv1`), or a list of these."""
    patterns = _listed(wanted)
    return [n for n, layer in names.items() if any(_matches(n, layer, pattern) for pattern in patterns)]


def components(model: Any, kinds: set[str] | None) -> dict[str, nn.Module]:
    """The parts of a model that LoRA files know, by `kinds`: its network, and its text encoders if there are any.

    None means all parts in memory; a frozen encoder that hasn't been read isn't among them. Raises UserError for a
    kind that the model doesn't have.
    """
    network = model.denoiser.network
    found: dict[str, nn.Module] = {UNET: network.network if isinstance(network, Controlled) else network}
    for part in model.conditioner.parts.values():
        if isinstance(part, Text):
            found[TEXT] = part.encoder
    for part in frozen_texts(model):
        kind = TEXT + part.suffix
        if part.is_held if kinds is None else kind in kinds:
            found[kind] = part.encoder
    if unknown := sorted((kinds or set()) - found.keys()):
        raise UserError(f"the model has no {', '.join(unknown)} for a LoRA to change.")
    return {kind: module for kind, module in found.items() if kinds is None or kind in kinds}


def changes_frozen_text(model: Any, adapter: LoraAdapter) -> bool:
    """Whether a LoRA changes a text encoder that isn't part of the model."""
    return any(_of(adapter.alphas, TEXT + part.suffix) for part in frozen_texts(model))


def frozen_texts(model: Any) -> list[FrozenText]:
    """The frozen text encoders of a model: one, or Stable Diffusion XL's two."""
    return [part for part in model.conditioner.modules() if isinstance(part, FrozenText)]


def weight_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that a LoRA can change, by component and layer, under either spelling."""
    found = {}
    for kind, module in components(model, None).items():
        for name, layer in layers.adaptable(module).items():
            found[f"{kind}.{name}"] = found[f"{kind}.{canonical(name)}"] = tuple(layer.weight.shape)
    return found


def xl_modules(model: Any) -> list[str]:
    """The layers of a Stable Diffusion XL base, which have other names in kohya's tools; none for other bases."""
    network = components(model, {UNET})[UNET]
    is_xl = getattr(network, "add_embedding", None) is not None
    return [f"{UNET}.{name}" for name in layers.adaptable(network)] if is_xl else []


def read_file(path: Path, model: Any) -> LoraAdapter:
    """The LoRA in a .safetensors file of another tool (diffusers, peft, kohya), which names no base."""
    state, metadata = formats.contents(path)
    texts = {TEXT, *(TEXT + part.suffix for part in frozen_texts(model))}
    parts = components(model, {UNET, *texts} if any(map(is_of_text, state)) else {UNET})
    modules = [f"{kind}.{name}" for kind, module in parts.items() for name in layers.adaptable(module)]
    lora = formats.from_contents(path, state, metadata, modules)
    skips = [part.clip_skip for part in frozen_texts(model)]
    width = getattr(parts[UNET], "context_dim", None)
    base_differences.warn_of_differences(
        metadata, model.denoiser.parameterization, str(path), clip_skip=next(iter(skips), 1), context_dim=width
    )
    return LoraAdapter.of_tensors(lora.weights, lora.alphas)


def inner_name(name: str) -> str:
    """`name` as a valid name of a submodule, without dots."""
    return "+" + name.replace(".", "·")


def _listed(wanted: str | Sequence[str]) -> list[str]:
    return [wanted] if isinstance(wanted, str) else list(wanted)


def _inject(module: nn.Module, inner: str, given: Mapping[str, kinds.Layer], alphas: Mapping[str, float]) -> None:
    """Replaces layers by peft's, with the tensors `given` for each layer, of any kind."""
    for kind in kinds.KINDS:
        own = {layer: tensors for layer, tensors in given.items() if kinds.kind_of(tensors) == kind}
        if own:
            ranks = {layer: kinds.rank(tensors) for layer, tensors in own.items()}
            layers.inject(module, inner, ranks, {layer: alphas[layer] for layer in own}, kind=kind)
    layers.put(module, inner, {f"{layer}.{leaf}": t for layer, tensors in given.items() for leaf, t in tensors.items()})


def _by_pattern(values: Mapping[str, Any] | None, name: str, layer: nn.Module) -> Any:
    """The value of the first pattern that matches a layer; None if none does."""
    return next((value for pattern, value in (values or {}).items() if _matches(name, layer, pattern)), None)


def _check_targets(found: Mapping[str, Mapping[str, nn.Module]], wanted: str | Sequence[str], option: str) -> None:
    """Raises UserError for a pattern that matches no layer of any component."""
    named = [(name, layer) for names in found.values() for name, layer in names.items()]
    for pattern in _listed(wanted):
        if not any(_matches(name, layer, pattern) for name, layer in named):
            words = {part for name, _ in named for part in name.split(".") if not part.isdigit()}
            raise UserError(f"{option}: no layer matches '{pattern}'.{did_you_mean(pattern, {*PRESETS, *words})}")


def _matches(name: str, layer: nn.Module, pattern: str) -> bool:
    if pattern == "attention":
        return any(f".{name}".endswith(f".{end}") for end in ATTENTION)
    if pattern in ("convolutions", "linear", "all"):
        kinds = {"convolutions": nn.Conv2d, "linear": nn.Linear}
        return pattern == "all" or isinstance(layer, kinds[pattern])
    return f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)


def _of(values: Mapping[str, float], kind: str) -> dict[str, float]:
    return {name.removeprefix(f"{kind}."): value for name, value in values.items() if name.startswith(f"{kind}.")}


def _installed(values: Mapping[str, Any], found: Mapping[str, nn.Module]) -> dict[str, Any]:
    """`values` under the layers' names in the installed libraries, which for CLIP differ from those in files."""
    own = installed(found)

    return {own.get(canonical(layer), layer): value for layer, value in values.items()}


def _check_fit(found: Mapping[str, nn.Module], given: Mapping[str, kinds.Layer], what: str) -> None:
    """Raises UserError for weights of layers that aren't there or have another size. `what` names the LoRA."""
    problems = []
    for name, tensors in given.items():
        layer: Any = found.get(name)
        if layer is None:
            problems.append(f"no layer {name}")
            continue
        shape = tuple(layer.weight.shape)
        try:
            implied = kinds.change_shape(tensors)
        except ValueError as error:
            problems.append(f"{name} {error}")
            continue
        is_matrix = kinds.kind_of(tensors) in ("lora", "dora")  # whose kernel is always in its lora_A
        fits = _plain(implied) == _plain(shape) if is_matrix else kinds.fits(implied, shape)
        if not fits:
            problems.append(f"{name} is {shape}, the LoRA's {implied}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{what} doesn't fit the model: {'; '.join(sorted(problems)[:4])}{more}.")


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a 1x1 convolution as the shape of a matrix, since some tools write it so."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _grow(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Registers a parameter under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)
