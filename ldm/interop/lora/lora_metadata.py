"""What the metadata of a LoRA file declare about its strength: peft's config, plain numbers, kohya's training log.

Every tool takes the alpha of kohya's files from their tensors. The log (`ss_...`) is read only for layers without such
a tensor, and may be that of another LoRA, from before it was merged or resized. Any other metadata about strength are
refused.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.declared import each_setting, of_metadata
from ldm.interop.files.values import flag, is_off, number, table, word
from ldm.interop.lora import kinds

log = logging.getLogger("ldm")
CONFIGS = ("lora_adapter_metadata", "adapter_config", "adapter_config_json", "lora_config", "peft_config")
_ALPHA, _RANK, _ARGS = "ss_network_alpha", "ss_network_dim", "ss_network_args"
_PLAIN = {  # words for the settings of peft's config
    "lora_alpha": ("lora_alpha", "alpha", "network_alpha"),
    "r": ("r", "rank", "lora_rank", "lora_r", "lora_dim", "network_dim", "network_rank"),
    "use_rslora": ("use_rslora", "use_rs_lora", "rslora", "rs_lora"),
}
_READ = {alias for aliases in _PLAIN.values() for alias in aliases}
_SIGNIFICANT = re.compile(
    r"(^|_)(alphas?|ranks?|dims|rs_?lora|dora|strength|multiplier|scalar)(_|$)|(^|_)scal(e|ing)(_factor)?$"
    r"|^(lora|adapter|network|default)_(weight|config|dim)$|^(weight|scale_weight|weight_decompose)$"
)
# in a trainer's log or arguments: how it trained, or what tensors say
_HARMLESS = {
    "ss_alpha_mask", "ss_network_dropout", "ss_network_module", "rank_dropout", "rank_dropout_scale", "alpha_mask",
    "conv_dim", "conv_alpha", "scale_weight_norms", "guidance_scale", "cfg_scale",
}  # fmt: skip
_OF_LAYERS = re.compile(r"(^|_)(alphas?|ranks?|rs_?lora|dora|decompose)(_|$)")  # in settings of a tool's own
_KINDS = ("algo", "dora_wd", "weight_decompose", "use_dora")
_PLAIN_ALGORITHMS = ("lora", "locon", "dylora")


def configs(metadata: Mapping[str, str], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The peft configs in the metadata, each with its key."""
    for key, text in metadata.items():
        if word(key) in CONFIGS:
            yield key, table(text, f"{where}, {key}")


def plain(
    metadata: Mapping[str, str], known: Mapping[str, float], ranks: Mapping[str, int], where: str
) -> dict[str, float]:
    """The alpha of those modules of `ranks` that aren't `known` yet, from plain numbers (`rank`, `alpha`,
    `use_rslora`).

    Raises UserError where the numbers contradict the weights, or what is known of every module.
    """
    declared = {setting: _one_of(metadata, aliases, where) for setting, aliases in _PLAIN.items()}
    _check_rank(declared["r"], {m: r for m, r in ranks.items() if m not in known} or ranks, where)
    kind, switch = declared["use_rslora"] or ("", None)
    stable = flag(switch, f"{where}: {kind}")
    if declared["lora_alpha"] is None:
        if stable:
            raise UserError(f"{where}: its metadata have {kind} without alpha, so the LoRA's "
                            "strength is unknown: get the file with its adapter_config.json.")  # fmt: skip
        return {}
    key, text = declared["lora_alpha"]
    alpha = number(text, f"{where}: {key}")
    by_metadata = {module: alpha * math.sqrt(rank) if stable else alpha for module, rank in ranks.items()}
    if known and not any(math.isclose(by_metadata[m], known[m], rel_tol=5e-3) for m in known):
        module = next(iter(known))
        raise UserError(
            f"{where}: alpha of {module} is {known[module]:g} in the file, but {by_metadata[module]:g} according to "
            f"{key} in its metadata: keep the right one."
        )
    return {module: value for module, value in by_metadata.items() if module not in known}


def of_log(metadata: Mapping[str, str], without_alpha: Mapping[str, kinds.Layer], where: str) -> dict[str, float]:
    """Alpha according to kohya's log, for the modules `without_alpha`, which are given with their tensors.

    There is one alpha for linear layers and 1x1 convolutions, and `conv_alpha` for the others, which is 1 by default
    where there is a `conv_dim`. 0 means the rank.
    """
    given = _get(metadata, _ARGS)
    args = {} if is_off(given) else table(given, f"{where}, {_ARGS}")
    if without_alpha:
        _refuse_unread(args, {kinds.kind_of(layer) for layer in without_alpha.values()}, where)
    found = {}
    for module, layer in without_alpha.items():
        rank: tuple[str, Any]
        alpha: tuple[str, Any]
        rank, alpha = (_RANK, _get(metadata, _RANK)), (_ALPHA, _get(metadata, _ALPHA) or None)
        if _has_kernel(layer) and args.keys() & {"conv_alpha", "conv_dim"}:
            rank, alpha = ("conv_dim", args.get("conv_dim")), ("conv_alpha", args.get("conv_alpha", 1))
        if str(rank[1]).replace(".", "").isdigit():
            _check_rank((rank[0], rank[1]), {module: kinds.rank(layer)}, where)
        if not is_off(alpha[1]):
            found[module] = number(alpha[1], f"{where}: {alpha[0]}") or float(kinds.rank(layer))
    return found


def check(
    metadata: Mapping[str, str],
    alphas: Mapping[str, float],
    ranks: Mapping[str, int],
    *,
    without_alpha: bool,
    families: AbstractSet[str],
    where: str,
) -> None:
    """Refuses other settings that change the strength, and warns of the log of another LoRA.

    `without_alpha` is whether some layers have no alpha anywhere; a tool's own settings, which aren't read, might then
    hold it. `families` are the kinds of all layers.
    """
    unread = [
        key for key, value in metadata.items() if _is_unread(key, value) and not _agrees(key, value, alphas, ranks)
    ]
    settings = _settings(metadata, families)
    inside = [(path, value) for path, name, value in settings if not _is_real(name, value, alphas, ranks)]
    unread += [path for path, _ in inside] if without_alpha else []
    if unread:
        raise UserError(
            f"{where}: its metadata have {', '.join(unread[:4])}, which changes its strength and isn't supported."
        )
    log_of = {key: _get(metadata, key) for key in (_ALPHA, _RANK)}
    logged = [(key, text) for key, text in log_of.items() if re.fullmatch(r"\d+(\.\d+)?", text) and float(text)]
    for key, text in [*inside, *((k, v) for k, v in logged if not _is_real(k, v, alphas, ranks))]:
        log.warning(
            "%s: its metadata say %s=%s, but its weights differ: the weights are used", where, key, str(text)[:40]
        )


def _one_of(metadata: Mapping[str, str], aliases: tuple[str, ...], where: str) -> tuple[str, str] | None:
    """The key and text under which a setting is given. Raises UserError where two differ."""
    found = [(key, text) for key, text in metadata.items() if word(key) in aliases and not is_off(text)]
    for key, text in found[1:]:
        if text != found[0][1]:
            raise UserError(f"{where}: its metadata have {found[0][0]}={found[0][1][:20]} and {key}={text[:20]}: "
                            "keep the right one.")  # fmt: skip
    return found[0] if found else None


def _check_rank(declared: tuple[str, Any] | None, ranks: Mapping[str, int], where: str) -> None:
    if declared is None:
        return
    rank = number(declared[1], f"{where}: {declared[0]}")
    if ranks and rank not in ranks.values():
        module, real = next(iter(ranks.items()))
        raise UserError(
            f"{where}: its metadata have {declared[0]}={rank:g}, but {module} has rank {real}: they belong to another "
            "LoRA, so its strength is unknown: download the file again."
        )


def _refuse_unread(args: Mapping[str, Any], families: AbstractSet[str], where: str) -> None:
    """Raises UserError if the log, on which the strength depends, has settings that aren't supported."""
    given = {k: v for k, v in args.items() if _is_of_strength(word(k)) and not is_off(v) and str(v) != "0"}
    unread = [f"{_ARGS}.{k}" for k, v in given.items() if word(k) not in _KINDS or not _is_of(families, word(k), v)]
    if "algo" in args and not _is_of(families, "algo", args["algo"]):
        unread.append(f"{_ARGS}.algo={args['algo']}")
    if not families <= {"lora", "dora"}:  # a convolution's tensors don't always show its kernel
        unread += [f"{_ARGS}.{key}" for key in ("conv_alpha", "conv_dim") if key in args]
    if unread:
        raise UserError(
            f"{where}: its metadata have {', '.join(unread)} for layers without alpha, which isn't supported."
        )


def _is_of_strength(name: str) -> bool:
    return name in _READ - {"r"} or (bool(_SIGNIFICANT.search(name)) and name not in _HARMLESS)


def _is_unread(key: str, value: str) -> bool:
    """Whether a key is about strength and isn't read anywhere. In a trainer's log that means its settings of the
    network."""
    name = word(key)
    if name in (_ALPHA, _RANK, _ARGS) or name in _READ or name in CONFIGS or is_off(value):
        return False
    if name.startswith("ss_") and not re.match(r"ss_(network|lora|adapter)_", name):
        return False
    return bool(_SIGNIFICANT.search(name.removeprefix("ss_"))) and name not in _HARMLESS


def _agrees(key: str, value: str, alphas: Mapping[str, float], ranks: Mapping[str, int]) -> bool:
    """Whether a factor has no effect of its own: it is 1, or it is under `scaling` and equals the alpha / rank of all
    layers."""
    try:
        factor = float(value)
    except ValueError:
        return False
    scalings = {alphas[m] / ranks[m] for m in ranks} if "scaling" in word(key) else set()
    return factor == 1 or (bool(scalings) and all(math.isclose(factor, s, rel_tol=5e-3) for s in scalings))


def _settings(metadata: Mapping[str, str], families: AbstractSet[str]) -> Iterator[tuple[str, str, Any]]:
    """The alphas, ranks and kinds in tables of a tool's own settings: path, name, value.

    Of kohya's log only the kind of network is among them. The rest of the log, and how a sample image was made, don't
    concern a LoRA's strength.
    """
    own = {
        k: v for k, v in metadata.items() if not re.match(r"(ss|sshs|modelspec)_", word(k)) and word(k) not in CONFIGS
    }
    for path, name, value in each_setting(of_metadata(own, "its metadata")):
        if "." in path and _OF_LAYERS.search(name) and not is_off(value) and name not in _HARMLESS:
            yield path, name, value
    text = _get(metadata, _ARGS)
    for key, value in () if is_off(text) else table(text, _ARGS).items():
        if word(key) in _KINDS and not is_off(value) and not _is_of(families, word(key), value):
            yield f"{_ARGS}.{key}", word(key), value


def _is_of(families: AbstractSet[str], name: str, value: Any) -> bool:
    """Whether a setting of kohya's log names a kind that some layer is of."""
    if name != "algo":
        return "dora" in families
    return value in families or (value in _PLAIN_ALGORITHMS and bool({"lora", "dora"} & families))


def _has_kernel(layer: kinds.Layer) -> bool:
    return max((size for tensor in layer.values() for size in tensor.shape[2:]), default=1) > 1


def _is_real(name: str, value: Any, alphas: Mapping[str, float], ranks: Mapping[str, int]) -> bool:
    """Whether at least one layer has the alpha or rank that a setting declares."""
    real = map(float, ranks.values()) if re.search("rank|dim", name) else alphas.values()
    try:
        declared = float(value)
    except (TypeError, ValueError):
        return False
    return any(math.isclose(declared, one, rel_tol=5e-3) for one in real)


def _get(metadata: Mapping[str, str], key: str) -> str:
    return next((text for name, text in metadata.items() if word(name) == key), "")
