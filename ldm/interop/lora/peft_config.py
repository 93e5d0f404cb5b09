"""What peft's config declares about a LoRA's strength: `adapter_config.json`, or the metadata that diffusers writes."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning.text.clip_names import spellings
from ldm.interop.files.name_tables import refuse
from ldm.interop.files.values import number
from ldm.interop.lora import kinds

log = logging.getLogger("ldm")
# read here, or about training, or about which layers have weights, which the tensors show
_KNOWN = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_dropout", "task_type", "auto_mapping", "peft_version",
    "base_model_name_or_path", "revision", "inference_mode", "eva_config", "runtime_config",
    "fan_in_fan_out",  # peft itself sets it to false for linear layers and convolutions
    "megatron_config", "megatron_core", "qalora_group_size", "loftq_config",  # matter with settings that are refused
)  # fmt: skip
_LYCORIS = (  # of LoHa and LoKr: beside dropout, what the tensors' shapes say
    "alpha", "rank_dropout", "module_dropout", "rank_dropout_scale", "use_effective_conv2d", "init_weights",
    "decompose_both", "decompose_factor",
)  # fmt: skip
_TYPES = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR"}
_FIXED = {
    "bias": "none",
    # other ways to begin change the base's weights too, and the LoRA fits no other base
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
_DEFAULT = 8  # peft's alpha, and its rank
_BEFORE = r"(.*\.)?"  # what peft lets a pattern leave out of a module's name
_MOST_REPEATS = 4  # in a pattern: matching takes a time that grows with this power of a name's length


def alphas(config: Mapping[str, Any], layers: Mapping[str, kinds.Layer], where: str) -> dict[str, float]:
    """Alpha of each module of `layers`, such that the change to a weight is alpha / rank * B A, or that of its kind.

    With `use_rslora` peft scales by lora_alpha / sqrt(rank) (Kalajdzievski 2023), so alpha is lora_alpha sqrt(rank).
    A LoKr of two whole matrices has no rank in its weights: alpha is then peft's factor, alpha / r. Raises UserError
    for each setting without a counterpart here, and if the config belongs to another LoRA.
    """
    found_kinds = {kinds.kind_of(layer) for layer in layers.values()}
    is_lora = found_kinds <= {"lora", "dora"}
    known = tuple(k for k in _KNOWN if is_lora or k != "lora_alpha") + (() if is_lora else _LYCORIS)
    refuse(config, known, _fixed(found_kinds), f"{where}: the LoRA")
    alpha_key = "lora_alpha" if is_lora else "alpha"
    given_rank = None if config.get("r") is None else _number(config["r"], "r", where)
    given_alpha = _number(config.get(alpha_key, _DEFAULT), alpha_key, where)
    rank_of, alpha_of = (_patterns(config, name, where) for name in ("rank_pattern", "alpha_pattern"))
    stable = _flag(config.get("use_rslora"), "use_rslora", where)
    found = {}
    for module, layer in layers.items():
        rank, declared = kinds.rank(layer), _first(rank_of, module, given_rank)
        if declared is not None and declared != rank and kinds.has_rank(layer):
            raise UserError(
                f"{where} declares rank {declared:g} for {module}, whose weights have {rank}: it belongs to "
                "another LoRA; remove it, or get the one that belongs to this file."
            )
        alpha = _first(alpha_of, module, given_alpha)
        assert alpha is not None
        found[module] = alpha * math.sqrt(rank) if stable else alpha
        if not kinds.has_rank(layer):
            found[module] = alpha / (declared or _DEFAULT)
    return found


def _fixed(found: set[str]) -> dict[str, Any]:
    """The values that settings must have for layers of the kinds that were `found`."""
    types = {_TYPES[kind] for kind in found}
    return _FIXED | {
        "peft_type": next(iter(types)) if len(types) == 1 else (),
        "use_dora": True if found == {"dora"} else (False, None),
    }


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, str):  # which peft refuses too
        raise UserError(f"{where}: {key} is {value[:40]!r}, where a number belongs.")
    return number(value, f"{where}: {key}")


def _flag(value: Any, key: str, where: str) -> bool:
    if value not in (True, False, None):
        raise UserError(f"{where}: {key} is {str(value)[:40]!r}, where true or false belongs.")
    return bool(value)


def _patterns(config: Mapping[str, Any], key: str, where: str) -> list[tuple[re.Pattern[str], float]]:
    """Each pattern with its number. peft matches a pattern against the end of a module's name."""
    given = config.get(key) or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: {key} is a {type(given).__name__}, where a number by module belongs.")
    return [(_compiled(p, key, where), _number(value, f"{key} of {p}", where)) for p, value in given.items()]


def warn_of_unused(config: Mapping[str, Any], modules: Iterable[str], where: str) -> None:
    """Warns of patterns in a config that match none of `modules`, the layers that have weights."""
    names = [name for module in modules for name in spellings(module)]
    for key in ("rank_pattern", "alpha_pattern"):
        own = _patterns(config, key, where)
        if idle := [p.pattern for p, _ in own if not any(map(p.match, names))]:
            shown = ", ".join(text.removeprefix(_BEFORE + "(").removesuffix(")$") for text in idle[:4])
            log.warning("%s: %s has patterns that match no layer of the LoRA: %s", where, key, shown)


def _compiled(pattern: str, key: str, where: str) -> re.Pattern[str]:
    repeats = re.findall(r"(?<![\\(])[*+{?]", pattern)
    if re.search(r"\)[*+{?]", pattern) or len(repeats) > _MOST_REPEATS:  # could take for ever
        raise UserError(f"{where}: {key} has the pattern {pattern[:60]!r}, which repeats too much to be read here.")
    try:
        return re.compile(rf"{_BEFORE}({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{where}: {key} has the pattern {pattern[:60]!r}, which isn't a valid pattern ({error})."
        ) from None


def _first(patterns: list[tuple[re.Pattern[str], float]], module: str, default: float | None) -> float | None:
    """The number of the first pattern that matches the module, under either spelling.

    peft writes patterns sorted by name, whatever their order was in training, so a warning names several that differ.
    """
    fitting = [value for pattern, value in patterns if any(pattern.match(name) for name in spellings(module))]
    if len(set(fitting)) > 1:
        log.warning(
            "several patterns of the LoRA's config match %s: the first is used, %g, as in peft", module, fitting[0]
        )
    return fitting[0] if fitting else default
