"""How strong a LoRA is: alpha of each module, from all the places where tools write it.

peft's config, beside the file or in diffusers' metadata; tensors of the file (kohya, diffusers); and of kohya's files
without such tensors their metadata. Places that contradict each other are refused. Where nothing is said alpha is the
rank, which is the convention of diffusers and kohya.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.interop import lora_config
from ldm.interop.lora_config import number

log = logging.getLogger("ldm")
DIFFUSERS = "lora_adapter_metadata"  # the key under which diffusers keeps peft's config
_ALPHA, _ARGS = "ss_network_alpha", "ss_network_args"
_ROUNDING = 5e-3  # alpha in bfloat16


def alphas(
    downs: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: tuple[str, Mapping[str, Any]] | None,
    where: str,
    pefts: bool = False,
) -> dict[str, float]:
    """Alpha by module of `downs`, the first matrices (rank, in).

    `tensors` are alphas out of the file; `config` is peft's from beside it and where it lies. `pefts`: the file has
    peft's names, of which nobody knows the strength without a config.
    """
    ranks = {module: down.shape[0] for module, down in downs.items()}
    said: dict[str, Mapping[str, float]] = {}
    if config is not None:
        said[config[0]] = _of_config(config[1], ranks, config[0])
    if DIFFUSERS in metadata:
        place = f"{where}, {DIFFUSERS}"
        said["its metadata"] = _of_config(_json(metadata[DIFFUSERS], place), ranks, place)
    said["its tensor"] = {module: _scalar(tensor, f"{where}: alpha of {module}") for module, tensor in tensors.items()}
    found = _agreed(said, where)
    if silent := [module for module in ranks if module not in found]:
        found |= _of_kohya(metadata, {module: downs[module] for module in silent}, where)
    if pefts and not found:
        log.warning(
            "%s: adapter_config.json isn't beside it, which says its strength: alpha is taken for the rank", where
        )
    return {module: found.get(module, float(rank)) for module, rank in ranks.items()}


def _agreed(said: Mapping[str, Mapping[str, float]], where: str) -> dict[str, float]:
    """What is said of each module. Raises UserError where two places differ."""
    found: dict[str, tuple[str, float]] = {}
    for place, values in said.items():
        for module, alpha in values.items():
            other, before = found.setdefault(module, (place, alpha))
            if not math.isclose(alpha, before, rel_tol=_ROUNDING):
                raise UserError(
                    f"{where}: alpha of {module} is {before:g} by {other} and {alpha:g} by {place}: keep the right one."
                )
    return {module: alpha for module, (_, alpha) in found.items()}


def _of_config(config: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """By component: diffusers puts `unet.` and `text_encoder.` before the settings, peft says them of all layers."""
    found: dict[str, float] = {}
    components = {module.partition(".")[0] for module in ranks}
    prefixed = any(key.startswith(("unet.", "text_encoder.")) for key in config)
    for component in components:
        start = f"{component}."
        own = {k.removeprefix(start): v for k, v in config.items() if k.startswith(start)} if prefixed else config
        short = {module.removeprefix(start): rank for module, rank in ranks.items() if module.startswith(start)}
        if own:
            found |= {start + m: alpha for m, alpha in lora_config.alphas(own, short, where).items()}
    return found


def _of_kohya(metadata: Mapping[str, str], downs: Mapping[str, Tensor], where: str) -> dict[str, float]:
    """What kohya's metadata say of modules without an alpha of their own: one number for linear layers and 1x1
    convolutions, for the others `conv_alpha`, which is 1 unless given where there is a `conv_dim`."""
    unread = [key for key in metadata if "alpha" in key.lower() and key not in (_ALPHA, DIFFUSERS)]
    args = _json(metadata[_ARGS], f"{where}, {_ARGS}") if metadata.get(_ARGS, "null") != "null" else {}
    unread += [f"{_ARGS}.{key}" for key in args if "alpha" in key.lower() and key != "conv_alpha"]
    if unread:
        raise UserError(
            f"{where}: its metadata say {', '.join(unread)} of layers without alpha, which isn't read here."
        )
    found = {}
    for module, down in downs.items():
        place, given = _ALPHA, metadata.get(_ALPHA)
        if max(down.shape[2:], default=1) > 1 and args.keys() & {"conv_alpha", "conv_dim"}:
            place, given = "conv_alpha", args.get("conv_alpha", 1)
        if given not in (None, "None"):
            found[module] = number(given, f"{where}: {place}")
    return found


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: it isn't JSON, so nobody knows the LoRA's strength: get the file anew.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: it holds a {type(content).__name__}, where a table of settings belongs.")
    return content


def _scalar(tensor: Tensor, what: str) -> float:
    if tensor.numel() != 1:
        raise UserError(f"{what} has the shape {tuple(tensor.shape)}, where one number belongs.")
    return number(tensor.item(), what)
