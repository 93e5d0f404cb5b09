"""The strength of a LoRA: alpha of each module, from all the places where tools write it.

These are peft's config, beside the file or in its metadata; tensors of the file (kohya, diffusers); plain numbers in
its metadata; and, for kohya's files without such tensors, the log of their training (`lora_metadata`). Places that
contradict each other are refused. Without any, alpha is the rank, as in diffusers and kohya's tools.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from ldm.common.errors import UserError
from ldm.interop.files.values import number
from ldm.interop.lora import kinds, lora_metadata, peft_config

log = logging.getLogger("ldm")
T = TypeVar("T")
DIFFUSERS = lora_metadata.CONFIGS[0]  # the key under which diffusers keeps peft's config
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_ROUNDING = 5e-3  # alpha in bfloat16


def alphas(
    layers: Mapping[str, kinds.Layer],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: tuple[str, Mapping[str, Any]] | None,
    where: str,
    pefts: bool = False,
) -> dict[str, float]:
    """Alpha of each module of `layers`, given with its tensors by leaf.

    A LoKr of two whole matrices has no rank: alpha is its factor, 1 unless peft's config gives another. `tensors` are
    the alphas in the file; `config` is the peft config beside it, with its path. `pefts`: the file has peft's names, so
    that its strength is unknown without a config.
    """
    rankless = [module for module, layer in layers.items() if not kinds.has_rank(layer)]
    declared: dict[str, Mapping[str, float]] = {}
    if config is not None:
        declared[config[0]] = _of_config(config[1], layers, config[0])
    for key, content in lora_metadata.configs(metadata, where):
        declared["its metadata" if key == DIFFUSERS else f"its {key}"] = _of_config(content, layers, f"{where}, {key}")
    declared["its tensor"] = {
        module: _scalar(tensor, f"{where}: alpha of {module}")
        for module, tensor in tensors.items()
        if module not in rankless
    }
    found = _agreed(declared, where)
    ranks = {module: kinds.rank(layer) for module, layer in layers.items() if module not in rankless}
    ranked = {module: alpha for module, alpha in found.items() if module in ranks}
    found |= lora_metadata.plain(metadata, ranked, ranks, where)
    without_alpha = {module: layers[module] for module in ranks if module not in found}
    found |= lora_metadata.of_log(metadata, without_alpha, where)
    whole = {module: found.get(module, float(kinds.rank(layer))) for module, layer in layers.items()}
    families = {kinds.kind_of(layer) for layer in layers.values()}
    lora_metadata.check(
        metadata, {m: whole[m] for m in ranks}, ranks, without_alpha=bool(without_alpha), families=families, where=where
    )
    if pefts and not found:
        log.warning(
            "%s: no adapter_config.json beside it gives its strength: alpha is assumed to be the rank",
            where,
        )
    return _with_warning_of_zeros(whole, where)


def _agreed(declared: Mapping[str, Mapping[str, float]], where: str) -> dict[str, float]:
    """Alpha of each module from all places. Raises UserError where two places differ."""
    found: dict[str, tuple[str, float]] = {}
    for place, values in declared.items():
        for module, alpha in values.items():
            other, before = found.setdefault(module, (place, alpha))
            if not math.isclose(alpha, before, rel_tol=_ROUNDING):
                raise UserError(
                    f"{where}: alpha of {module} is {before:g} in {other}, but {alpha:g} in {place}: "
                    "keep the right one."
                )
    return {module: alpha for module, (_, alpha) in found.items()}


def _of_config(config: Mapping[str, Any], layers: Mapping[str, kinds.Layer], where: str) -> dict[str, float]:
    """Alpha by component: diffusers puts `unet.` and `text_encoder.` before the settings, peft's settings are for all
    layers."""
    found: dict[str, float] = {}
    own = {component: _under(config, f"{component}.") for component in _COMPONENTS}
    shared = {key: value for key, value in config.items() if not key.startswith(tuple(f"{c}." for c in _COMPONENTS))}
    peft_config.warn_of_unused(shared, [module.partition(".")[2] for module in layers], where)
    for component, settings in own.items():
        start = f"{component}."
        short = _under(layers, start)
        both = _joined(shared, settings, component, where)
        if short and both:
            peft_config.warn_of_unused(settings, short, where)
            found |= {start + m: alpha for m, alpha in peft_config.alphas(both, short, where).items()}
        elif short:
            log.warning("%s doesn't mention the %s: its alpha is assumed to be the rank", where, component)
        elif settings:
            log.warning("%s configures the %s, but the file has no weights for it", where, component)
    return found


def _joined(shared: Mapping[str, Any], own: Mapping[str, Any], component: str, where: str) -> dict[str, Any]:
    """The settings for all components joined with those for one component. Raises UserError where they differ."""
    for key in shared.keys() & own.keys():
        if shared[key] != own[key]:
            raise UserError(
                f"{where} has {key}={shared[key]!r} for all parts and {component}.{key}={own[key]!r}: "
                "keep the right one."
            )
    return {**shared, **own}


def _under(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _with_warning_of_zeros(alphas: dict[str, float], where: str) -> dict[str, float]:
    if zeros := [module for module, alpha in alphas.items() if alpha == 0]:
        log.warning(
            "%s: alpha of %s (%d layers) is 0, which leaves these layers unchanged; kohya's tools read 0 as the rank",
            where, zeros[0], len(zeros),
        )  # fmt: skip
    return alphas


def _scalar(tensor: Tensor, what: str) -> float:
    if tensor.numel() != 1:
        raise UserError(f"{what} has the shape {tuple(tensor.shape)}, where one number belongs.")
    try:
        return number(tensor.item(), what)
    except NotImplementedError:  # two numbers of 4 bits in a byte
        raise UserError(f"{what} is {str(tensor.dtype).removeprefix('torch.')}, which isn't read here.") from None
