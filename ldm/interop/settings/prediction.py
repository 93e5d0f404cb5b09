"""What the network of a single-file checkpoint predicts, as the file declares it."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import flag, word

log = logging.getLogger("ldm")
GIVEN = ("eps", "v", "flow")  # what a user may give; EDM needs numbers from the file's settings
SPELLINGS = {
    "epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "flow": "flow", "flow_prediction": "flow",
    "flow_matching": "flow", "rectified_flow": "flow",
}  # fmt: skip
_V_MARKS = ("v_parameterization", "ss_v_parameterization")
_FLOW_MARKS = ("rectified_flow", "ss_rectified_flow", "flow_matching", "ss_flow_matching")
_NAMES = ("modelspec_prediction_type", "prediction_type", "parameterization")
_KIND = "model_type"  # tools also use these names for other things
_BASE = "ss_base_model_version"
_SCALING = "scaling_config.target"
_SCALINGS = {"EpsScaling": "eps", "VScaling": "v", "EDMScaling": "edm"}  # of Stability AI's generative-models (sgm)
ARCHITECTURES = {  # ModelSpec's
    "stable-diffusion-v2-512": "eps",
    "stable-diffusion-v2-768-v": "v",
    "stable-diffusion-v2-inpainting": "eps",
}


def of_file(state: dict[str, Tensor], declared: Mapping[str, Any], given: str | None, path: Path) -> str | None:
    """ "eps", "v", "flow" or "edm": as `given`, else by the file's marker `v_pred`, its metadata or its trainer's
    settings.

    The marker is removed from `state`. If nothing is given, raises UserError where these contradict each other or name
    another prediction.
    """
    if given not in (None, *GIVEN):
        raise UserError(f"prediction={given}: a checkpoint predicts eps or v, or flow.")
    claims: dict[str, tuple[str, str | None]] = {}
    if state.pop("v_pred", None) is not None:
        claims["v_pred"] = ("v", "v")
    claims |= {key: (text, kind) for key, text, kind in of_settings(declared, str(path))}
    _refuse_scaling(claims, path)
    kinds = {kind for _, kind in claims.values()}
    text = " and ".join(f"{key}={value[-40:]}" for key, (value, _) in claims.items())
    if given is not None:
        if kinds - {given}:
            log.warning("%s: prediction=%s was given and is used instead of the file's own %s", path, given, text)
        return given
    if len(kinds) > 1 or None in kinds:
        raise UserError(f"{path} declares that it predicts {text}: give prediction=eps or prediction=v.")
    return next(iter(kinds), None)


def of_architecture(name: Any) -> str | None:
    """The prediction by ModelSpec's identifier of an architecture, whatever follows it; None for other identifiers."""
    return next((kind for known, kind in ARCHITECTURES.items() if str(name).strip().lower().startswith(known)), None)


def of_base(version: Any) -> str | None:
    """The prediction by kohya's version of a base (`sd_v1`, `sd_v2_v`, ...); None for other versions and for SDXL,
    which has both."""
    found = re.fullmatch(r"sd_v[12](_v)?", str(version).strip().lower())
    return ("v" if found[1] else "eps") if found else None


def of_settings(declared: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, str | None]]:
    """Each setting about the prediction: its key, its value, and its meaning, which is None if unsupported."""
    for key, name, value in each_setting(declared):
        if name in _NAMES or (name == _KIND and word(str(value)) in SPELLINGS):
            yield key, str(value), SPELLINGS.get(word(str(value)))
        elif name in _V_MARKS:
            kind = "v" if flag(value, f"{where}: {key}") else "eps"
            yield key, kind, kind
        elif name in _FLOW_MARKS and flag(value, f"{where}: {key}"):
            yield key, str(value), "flow"
        elif known := _of_version(name, value):
            yield key, str(value), known
        elif key.endswith(_SCALING):
            yield key, str(value), _SCALINGS.get(str(value).rsplit(".", 1)[-1])


def _of_version(name: str, value: Any) -> str | None:
    return of_architecture(value) if name == "modelspec_architecture" else of_base(value) if name == _BASE else None


def _refuse_scaling(claims: Mapping[str, tuple[str, str | None]], path: Path) -> None:
    """Raises UserError for an unknown scaling, such as v over sigma, whose network takes ln(sigma) / 4 as its
    timestep."""
    for key, (target, kind) in claims.items():
        if key.endswith(_SCALING) and kind is None:
            name, known = target.rsplit(".", 1)[-1], ", ".join(_SCALINGS)
            raise UserError(f"{path} sets {key}={name[:60]}, which can't be represented here: {known} can.")
