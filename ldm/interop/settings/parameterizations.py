"""The parameterization of a single-file checkpoint: over a table of timesteps, EDM's, or a rectified flow."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.diffusion import EDM, Flow
from ldm.diffusion.parameterization import Parameterization
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import is_off, number
from ldm.interop.settings import noise_table

log = logging.getLogger("ldm")
_CLASSES = {"eps": "Eps", "v": "V"}
_SHIFTS = ("flow_shift", "discrete_flow_shift", "ss_discrete_flow_shift")
# of Stability AI's generative-models (sgm), with their defaults, and whose settings they are
_EDM = {"sigma_data": ("scaling_config.", 0.5), "sigma_min": ("discretization_config.", 0.002),
        "sigma_max": ("discretization_config.", 80.0), "rho": ("discretization_config.", 7.0)}  # fmt: skip


def of_file(
    kind: str, state: dict[str, Tensor], declared: Mapping[str, Any], where: str
) -> tuple[Parameterization, dict[str, Any]]:
    """The parameterization for a `kind` of prediction (see `prediction`), by tables in `state` and by settings; and the
    sampling options in these.

    Raises UserError for noise levels that aren't supported.
    """
    if kind in _CLASSES:
        return build({"class": _CLASSES[kind], "schedule": noise_table.schedule(state, declared, where)}), {}
    noise_table.warn_of_unused(state, kind, where)
    if kind == "flow":
        return Flow(), _shift(declared, where)
    return _edm(declared, where), {}


def _shift(declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """t' = k t / (1 + (k - 1) t), in kohya's tools and here."""
    found = {number(value, f"{where}: {key}") for key, name, value in each_setting(declared) if name in _SHIFTS}
    if len(found) > 1 or any(shift <= 0 for shift in found):
        raise UserError(f"{where} declares the shifts {sorted(found)}, where one number above 0 belongs.")
    return {"shift": found.pop()} if found else {}


def _edm(declared: Mapping[str, Any], where: str) -> EDM:
    _refuse_others(declared, where)
    found = {name: _one(declared, name, section, usual=usual, where=where) for name, (section, usual) in _EDM.items()}
    if found.pop("rho") != 7:
        raise UserError(f"{where}: EDM's noise levels are spaced with rho=7 here, but the file declares another.")
    return EDM(**found)


def _refuse_others(declared: Mapping[str, Any], where: str) -> None:
    """Refuses other noise levels, and a denoiser that rounds sigma to a table, which can't hold ln(sigma) / 4."""
    for key, _, value in each_setting(declared):
        name = str(value).rsplit(".", 1)[-1]
        rounds = key.endswith("denoiser_config.target") and name.startswith("Discrete")
        if rounds or (key.endswith("discretization_config.target") and name != "EDMDiscretization"):
            raise UserError(f"{where} sets {key}={name[:60]} beside EDMScaling, which can't be represented here.")


def _one(declared: Mapping[str, Any], name: str, section: str, usual: float, where: str) -> float:
    """A number that one kind of section declares. Raises UserError where two places differ."""
    found = dict(_numbers(declared, name, section, where))
    if len(set(found.values())) > 1:
        both = " and ".join(f"{key}={value:g}" for key, value in found.items())
        raise UserError(f"{where} sets {both}: remove the wrong one.")
    return next(iter(found.values()), usual)


def _numbers(declared: Mapping[str, Any], name: str, section: str, where: str) -> Iterator[tuple[str, float]]:
    for key, own, value in each_setting(declared):
        if own == name and section in key and not is_off(value):
            yield key, number(value, f"{where}: {key}")
