"""How to read a single file's text encoder, by its settings: which layer, and how many tokens."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.declared import NO_SETTINGS, each_setting
from ldm.interop.files.values import is_off, number, whole

log = logging.getLogger("ldm")
_SECTIONS = ("cond_stage", "conditioner_config")
_SKIPS = ("ss_clip_skip", "clip_skip", "modelspec_encoder_layer")
Encoder = tuple[int, bool]  # its layers, and whether it is OpenCLIP's, whose last block has been removed already


def of_file(declared: Mapping[str, Any], encoder: Encoder | None, positions: int, where: str) -> dict[str, Any]:
    """Options of `FrozenText` for an encoder of `positions` tokens: `clip_skip`, `final_norm` and `length`.

    The clip skip of kohya's tools and ModelSpec counts layers from the end, the last being 1, and keeps the final norm;
    CompVis's `layer: hidden` has no final norm. Raises UserError where two places differ or a layer can't be read.
    """
    layers = [*_layers(declared, encoder, where), *_skips(declared, encoder, where)]
    for key, skip, _ in layers[1:]:
        if skip != layers[0][1]:
            raise UserError(
                f"{where} sets {layers[0][0]} and {key}, which are two different layers of the text encoder: "
                "remove one."
            )
    options: dict[str, Any] = {}
    if layers and layers[0][1] > 1:
        options = {"clip_skip": layers[0][1], "final_norm": layers[0][2]}
        if encoder and options["clip_skip"] > encoder[0]:
            raise UserError(f"{where} sets {layers[0][0]}, but its text encoder has {encoder[0]} layers.")
    return options | _length(declared, positions, where)


def of_xl(declared: Mapping[str, Any], positions: int, where: str) -> dict[str, Any]:
    """Options of `FrozenText` for both encoders of Stable Diffusion XL, which are always read at their last layer but
    one: a declared clip skip beyond it is named in a warning."""
    list(_skips(declared, (0, True), where))
    return _length(declared, positions, where)


def _section(declared: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The settings of a text encoder."""
    for key, name, value in each_setting(declared, NO_SETTINGS):
        if any(one in key for one in _SECTIONS):
            yield key, name, value


def _layers(declared: Mapping[str, Any], encoder: Encoder | None, where: str) -> Iterator[tuple[str, int, bool]]:
    """Each setting of a layer in CompVis's config: its key, the layer counted from the end, and whether the final norm
    follows."""
    settings = {key: value for key, _, value in _section(declared)}
    is_open = encoder[1] if encoder else None
    for key, kind in settings.items():
        if not key.endswith(".layer"):
            continue
        if kind == "hidden" and not is_open:
            yield _hidden(f"{key}_idx", settings.get(f"{key}_idx"), encoder, where)
        elif kind == ("penultimate" if is_open else "last") or (encoder is None and kind == "penultimate"):
            yield f"{key}={kind}", 1, True
        else:
            raise UserError(f"{where} sets {key}={str(kind)[:40]}, a layer that can't be read here.")


def _hidden(key: str, value: Any, encoder: Encoder | None, where: str) -> tuple[str, int, bool]:
    """`layer_idx` counts hidden states from the embeddings, 0, or, if negative, from the last layer, -1."""
    index = number(value, f"{where}: {key}")
    skip = -index if index < 0 else (encoder[0] + 1 - index if encoder else 0)
    if skip != int(skip) or skip < 2:
        raise UserError(f"{where}: {key} is {str(value)[:40]}, a hidden state that can't be read here.")
    return f"{key}={int(index)}", int(skip), False


def _skips(declared: Mapping[str, Any], encoder: Encoder | None, where: str) -> Iterator[tuple[str, int, bool]]:
    for key, name, value in each_setting(declared):
        if name not in _SKIPS or is_off(value):
            continue
        skip = max(1, whole(number(value, f"{where}: {key}"), f"{where}: {key}", 0, 99))
        if encoder and encoder[1]:  # its penultimate layer is read: 2 in ModelSpec, 1 in kohya's tools
            if skip > 2:
                log.warning("%s: %s=%s isn't applied: the penultimate layer is read", where, key, value)
        else:
            yield f"{key}={skip}", skip, True


def _length(declared: Mapping[str, Any], positions: int, where: str) -> dict[str, int]:
    """The declared `max_length`, if the encoder has as many positions; a warning names a longer one."""
    found = [(key, value) for key, name, value in _section(declared) if name == "max_length"]
    longer = [(key, value) for key, name, value in each_setting(declared) if name == "ss_max_token_length"]
    lengths = []
    for key, value in [*found, *longer]:
        count = positions if is_off(value) else whole(number(value, f"{where}: {key}"), f"{where}: {key}")
        if count > positions:
            log.warning("%s: %s=%s isn't applied: prompts are read to %d tokens", where, key, value, positions)
        elif (key, value) in found:
            lengths.append(count)
    if len(set(lengths)) > 1:
        raise UserError(f"{where} sets {len(set(lengths))} values of max_length: remove the wrong ones.")
    return {"length": lengths[0]} if lengths else {}
