"""The number of attention heads, which a single file's weights don't show, from its settings."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.declared import NO_SETTINGS, each_setting
from ldm.interop.files.values import is_off, number

log = logging.getLogger("ldm")
_KEYS = {
    "num_head_channels": "head_dim",
    "num_heads": "heads",
}  # the first is used where both are set, as in CompVis's code
UNET, CONTROLNET = ("unet", "network_config"), ("control_stage",)


def of_file(
    declared: Mapping[str, Any], given: Mapping[str, Any], sections: tuple[str, ...], where: str
) -> dict[str, int]:
    """`heads` or `head_dim` as `given`, else from the file's settings in `sections`, where -1 means unset.

    Raises UserError where two places differ.
    """
    own: dict[str, int] = {}
    for key, ours, count in _counts(declared, sections, where):
        if own.setdefault(ours, count) != count:
            raise UserError(f"{where} sets {key}={count} but {own[ours]} in another place: give heads or head_dim.")
    own = dict(list(own.items())[:1]) if "head_dim" not in own else {"head_dim": own["head_dim"]}
    requested = {key: given[key] for key in ("heads", "head_dim") if key in given}
    if requested and own and requested != own:
        log.warning("%s: %s was given and is used instead of the file's own %s", where, _shown(requested), _shown(own))
    return requested or own


def _counts(declared: Mapping[str, Any], sections: tuple[str, ...], where: str) -> Iterator[tuple[str, str, int]]:
    for key, name, value in each_setting(declared, NO_SETTINGS):
        section, _, _ = key.rpartition(".")
        if name not in _KEYS or (section and not any(one in section for one in sections)):
            continue
        count = -1 if is_off(value) else number(value, f"{where}: {key}")
        if count != -1:
            if count < 1 or count != int(count):
                raise UserError(f"{where}: {key} is {str(value)[:40]!r}, where a whole number from 1 on belongs.")
            yield key, _KEYS[name], int(count)


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in counts.items())
