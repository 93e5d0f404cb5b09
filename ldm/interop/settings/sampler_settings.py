"""How to sample, by a single file's settings: `sampler_config` of Stability AI's generative-models (sgm)."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.annotations import check_guidance
from ldm.common.errors import UserError
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import is_off, number, whole

log = logging.getLogger("ldm")
_SECTION, _GUIDER = "sampler_config.", "guider_config."
_NOISE = "discretization_config"  # belongs to the parameterization
_SAMPLERS: dict[str, dict[str, str]] = {
    "EulerEDMSampler": {"sampler": "euler"},
    "HeunEDMSampler": {"sampler": "heun", "variant": "karras"},
    "EulerAncestralSampler": {"sampler": "euler_ancestral"},
    "DPMPP2MSampler": {"sampler": "dpmpp_2m"},
}
_MOST_STEPS = 1000
# settings that change nothing: sgm's defaults, device and verbosity
_USUAL = {"s_churn": (0,), "s_tmin": (0,), "s_tmax": (), "s_noise": (1,), "eta": (1,), "verbose": (), "device": ()}
_PLAIN = ("VanillaCFG", "NoDynamicThresholding", "IdentityGuider")


def of_file(declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The declared sampling options; a warning names a sampler and settings without a counterpart here."""
    found: dict[str, Any] = {}
    left_out = []
    for key, name, value in _settings(declared):
        if key.endswith("sampler_config.target") and _last(value) in _SAMPLERS:
            found |= _SAMPLERS[_last(value)]
        elif name == "num_steps":
            found["steps"] = whole(number(value, f"{where}: {key}"), f"{where}: {key}", 1, _MOST_STEPS)
        elif _GUIDER in key and name == "scale":
            found["guidance"] = _guidance(value, f"{where}: {key}")
        elif not _is_usual(name, value):
            left_out.append(f"{key}={str(value)[-40:]}")
    if left_out:
        log.warning("%s: %s has no counterpart here and is left out", where, ", ".join(left_out[:8]))
    return found


def _settings(declared: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, name, value in each_setting(declared):
        if f".{_SECTION}" in f".{key}" and _NOISE not in key and not is_off(value):
            yield key, name, value


def _guidance(value: Any, what: str) -> float:
    scale = number(value, what)
    try:
        check_guidance(scale)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return scale


def _is_usual(name: str, value: Any) -> bool:
    if name == "target":
        return _last(value) in _PLAIN
    usual = _USUAL.get(name)
    return usual is not None and (not usual or str(value) in {f"{u}" for u in usual} | {f"{u}.0" for u in usual})


def _last(target: Any) -> str:
    return str(target).rsplit(".", 1)[-1]
