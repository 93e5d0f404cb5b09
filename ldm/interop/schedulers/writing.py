"""A parameterization and its sampling defaults as a diffusers scheduler config."""

import logging
from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.diffusion.schedule import _ends
from ldm.interop.parts.unet_config import full_spec
from ldm.interop.schedulers.equivalents import (
    BETA_SCHEDULES,
    EDM_SIGMAS,
    SIGMA_SPACINGS,
    STEPS_OF_THE_TABLE,
    VARIANCES,
)

log = logging.getLogger("ldm")
_DPM = {
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True,
    "final_sigmas_type": "zero",
}  # fmt: skip
_CLASSES: dict[str, dict[str, Any]] = {
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_small"},
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler_ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "dpmpp_2m": {"_class_name": "DPMSolverMultistepScheduler", **_DPM},
    "dpmpp_2m_sde": {"_class_name": "DPMSolverMultistepScheduler", **_DPM, "algorithm_type": "sde-dpmsolver++"},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "zero"},
    "lcm": {"_class_name": "LCMScheduler", "clip_sample": False, "set_alpha_to_one": True},
}
_NO_KARRAS = (*STEPS_OF_THE_TABLE, "EulerAncestralDiscreteScheduler")


def to_diffusers(parameterization: Parameterization, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A scheduler config that samples like `sampling`, including our last step to sigma = 0.

    Raises UserError for a parameterization without a scheduler in diffusers.
    """
    sampling = sampling or {}
    if isinstance(parameterization, Flow):
        return _flow(parameterization, sampling)
    if isinstance(parameterization, EDM):
        return _edm(parameterization, sampling)
    if isinstance(parameterization, VariancePreserving):
        return _variance_preserving(parameterization, sampling)
    raise UserError(f"{type(parameterization).__name__} has no scheduler in diffusers.")


def _flow(parameterization: Flow, sampling: Mapping[str, Any]) -> dict[str, Any]:
    shift = sampling.get("shift") or 1.0  # diffusers' shift is ours: t' = k t / (1 + (k - 1) t)
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 1.0 if shift == "auto" else float(shift),  # auto is 1 at the size of training
        "t_max": full_spec(parameterization)["t_max"],
    }
    if _sampler_of(sampling) == "lcm":
        scheduler["stochastic_sampling"] = True
    return scheduler


def _edm(parameterization: EDM, sampling: Mapping[str, Any]) -> dict[str, Any]:
    sampler = _sampler_of(sampling)
    if sampler == "lcm" or sampling.get("spacing") == "beta":
        raise UserError("a distilled EDM model's few steps have no scheduler in diffusers: export its base.")
    multistep = _is_multistep(sampler)
    spec = full_spec(parameterization)
    scheduler = {
        "_class_name": "EDMDPMSolverMultistepScheduler" if multistep else "EDMEulerScheduler",
        **{key: spec[key] for key in EDM_SIGMAS},
        "sigma_schedule": "karras",
        "rho": 7.0,
        "prediction_type": "epsilon",
    }
    if multistep:
        scheduler |= {"solver_order": 2, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    return scheduler


def _variance_preserving(parameterization: VariancePreserving, sampling: Mapping[str, Any]) -> dict[str, Any]:
    sampler = _sampler_of(sampling)
    scheduler = _betas(parameterization) | _CLASSES[sampler] | _options(sampling)
    if sampler == "lcm":
        all_timesteps = sampling.get("spacing") != "lcm"
        scheduler["original_inference_steps"] = parameterization.schedule.timesteps if all_timesteps else 50
        return scheduler
    if sampler == "heun" and sampling.get("variant") != "karras":
        log.warning(
            "diffusers' Heun is ours with variant=karras: it samples a little differently, and worse at few steps"
        )
    return scheduler | _spacing(sampling.get("spacing"), sampler, scheduler["_class_name"])


def _spacing(spacing: str | None, sampler: str, class_name: str) -> dict[str, Any]:
    """The settings for one of our spacings; a warning names one that diffusers doesn't have."""
    if spacing in SIGMA_SPACINGS.values() and class_name not in _NO_KARRAS:
        switches = {key: True for key, ours in SIGMA_SPACINGS.items() if ours == spacing}
        return {"timestep_spacing": "linspace", **switches}
    if spacing == "linspace" and not _is_multistep(sampler) and class_name not in STEPS_OF_THE_TABLE:
        return {"timestep_spacing": "linspace"}
    if spacing not in (None, "uniform", "table"):
        log.warning("diffusers has no spacing %r for %s: it is exported as uniform", spacing, sampler)
    return {}


def _options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's own options under diffusers' names."""
    options: dict[str, Any] = {}
    if sampling.get("sampler") == "unipc":
        options = {"solver_order": sampling.get("order", 2), "solver_type": sampling.get("variant", "bh2")}
        if options["solver_type"] == "bh1":  # at sigma = 0 diffusers' bh1 gives NaN
            options["final_sigmas_type"] = "sigma_min"
    if sampling.get("sampler") == "ddpm":
        theirs = {ours: name for name, ours in VARIANCES.items()}
        options["variance_type"] = theirs[sampling.get("variance", "posterior")]
        if clip := sampling.get("clip"):
            options |= {"clip_sample": True, "clip_sample_range": clip}
    return options


def _betas(parameterization: VariancePreserving) -> dict[str, Any]:
    schedule = full_spec(parameterization.schedule)
    kind = schedule["kind"]
    theirs = {ours: name for name, ours in BETA_SCHEDULES.items()}
    scheduler = {"num_train_timesteps": schedule["timesteps"], "beta_schedule": theirs[kind]}
    if kind != "cosine":
        start, end = _ends(kind, schedule["beta_start"], schedule["beta_end"], schedule["timesteps"])
        scheduler |= {"beta_start": start, "beta_end": end}
    return scheduler | {
        "rescale_betas_zero_snr": schedule["zero_terminal_snr"],
        "prediction_type": {Eps: "epsilon", V: "v_prediction", X0: "sample"}[type(parameterization)],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # "trailing" doesn't use it, but stock pipelines expect it
    }


def _sampler_of(sampling: Mapping[str, Any]) -> str:
    return str(sampling.get("sampler", "dpmpp_2m"))


def _is_multistep(sampler: str) -> bool:
    return sampler.startswith(("dpmpp", "unipc"))
