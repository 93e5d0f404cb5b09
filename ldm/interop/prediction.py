"""What a checkpoint in one file says that its network predicts."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.interop.plain import flag
from ldm.interop.said import leaves

log = logging.getLogger("ldm")
_PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
_V_MARKS = ("v_parameterization", "ss_v_parameterization")
_NAMES = ("modelspec_prediction_type", "prediction_type", "parameterization")
_SCALINGS = {"EpsScaling": "eps", "VScaling": "v"}  # of Stability AI's generative-models (sgm)
ARCHITECTURES = {"stable-diffusion-v2-512": "eps", "stable-diffusion-v2-768-v": "v"}  # of ModelSpec: one for each kind


def of_file(state: dict[str, Tensor], said: Mapping[str, Any], given: str | None, path: Path) -> str | None:
    """ "eps" or "v": as `given`, else by the file's marker `v_pred`, metadata or trainer's settings.

    The marker is taken out of `state`. Raises UserError where these contradict each other, or say something else, and
    nothing is given.
    """
    if given not in (None, "eps", "v"):
        raise UserError(f"prediction={given}: a checkpoint predicts eps or v.")
    claims: dict[str, tuple[str, str | None]] = {}
    if state.pop("v_pred", None) is not None:
        claims["v_pred"] = ("v", "v")
    claims |= {key: (text, kind) for key, text, kind in _claims(said, path)}
    kinds = {kind for _, kind in claims.values()}
    text = " and ".join(f"{key}={value[-40:]}" for key, (value, _) in claims.items())
    if given is not None:
        if kinds - {given}:
            log.warning("%s: prediction=%s is taken as asked for, not the file's own %s", path, given, text)
        return given
    if len(kinds) > 1 or None in kinds:
        raise UserError(f"{path} says that it predicts {text}: give prediction=eps or prediction=v.")
    return next(iter(kinds), None)


def of_architecture(name: Any) -> str | None:
    """The prediction that ModelSpec's identifier of an architecture says, whatever follows it; None for others."""
    return next((kind for known, kind in ARCHITECTURES.items() if str(name).strip().lower().startswith(known)), None)


def _claims(said: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Where it is said, in what words, and which prediction that is; None for one that isn't read."""
    for key, name, value in leaves(said):
        if name in _NAMES:
            yield key, str(value), _PREDICTIONS.get(str(value))
        elif name in _V_MARKS:
            kind = "v" if flag(value, f"{path}: {key}") else "eps"
            yield key, kind, kind
        elif name == "modelspec_architecture" and (known := of_architecture(value)):
            yield key, str(value), known
        elif key.endswith("scaling_config.target"):
            yield key, str(value), _scaling(str(value), f"{path} says {key}")


def _scaling(target: str, where: str) -> str:
    """Raises UserError at EDM's, whose network is fed with ln(sigma) / 4 for a timestep, and at unknown ones."""
    name = target.rsplit(".", 1)[-1]
    if name not in _SCALINGS:
        raise UserError(f"{where}={name[:60]}, which can't be represented here: {' and '.join(_SCALINGS)} can.")
    return _SCALINGS[name]
