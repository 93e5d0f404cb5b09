"""diffusers' scheduler configs and our parameterizations with their sampling defaults, each from the other."""

from collections.abc import Mapping
from typing import Any

from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.diffusion.schedule import _ends
from ldm.errors import UserError
from ldm.interop.unet import full_spec
from ldm.registry import build

_VP = {"epsilon": "Eps", "v_prediction": "V", "sample": "X0"}
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_SPACINGS = {"trailing": "uniform", "leading": "uniform", "linspace": "linspace"}  # "leading" never sees the last steps
# the sampler of ours that does what the class of theirs does; a class that isn't here is refused
_SAMPLERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "dpmpp_2m",
    "LMSDiscreteScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "dpmpp_2m",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
}


def from_diffusers(config: Mapping[str, Any]) -> tuple[Parameterization, dict[str, Any]]:
    """What the network predicts, and the sampling defaults, of a scheduler's config."""
    name = config.get("_class_name", "")
    if name not in _SAMPLERS:
        raise UserError(f"the scheduler {name!r} has no counterpart here; known: {', '.join(_SAMPLERS)}.")
    sampling: dict[str, Any] = {"sampler": _SAMPLERS[name]}
    if name.startswith("FlowMatch"):
        if config.get("use_dynamic_shifting"):
            raise UserError("the scheduler can't be represented here: use_dynamic_shifting=True.")
        return Flow(), sampling | {"shift": float(config.get("shift", 1.0))}
    if name.startswith("EDM"):
        return _edm(config), sampling
    if config.get("prediction_type") == "flow_prediction":
        return Flow(), sampling | {"shift": float(config.get("flow_shift", 1.0))}
    if config.get("use_karras_sigmas"):
        sampling["spacing"] = "karras"
    elif (spacing := _SPACINGS[config.get("timestep_spacing", "leading")]) != "uniform":
        sampling["spacing"] = spacing
    return _variance_preserving(config), sampling


def to_diffusers(parameterization: Parameterization, sampler: str = "dpmpp_2m") -> dict[str, Any]:
    """A scheduler config with our spacing and our last step, to sigma = 0."""
    multistep = sampler.startswith("dpmpp")
    if isinstance(parameterization, Flow):
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "t_max": full_spec(parameterization)["t_max"],
        }
    if isinstance(parameterization, EDM):
        solver = {"solver_order": 2, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"} if multistep else {}
        return {
            "_class_name": "EDMDPMSolverMultistepScheduler" if multistep else "EDMEulerScheduler",
            **{key: full_spec(parameterization)[key] for key in ("sigma_min", "sigma_max", "sigma_data")},
            "sigma_schedule": "karras",
            "rho": 7.0,
            "prediction_type": "epsilon",
            **solver,
        }
    if not isinstance(parameterization, VariancePreserving):
        raise UserError(f"{type(parameterization).__name__} has no scheduler in diffusers.")
    return _betas(parameterization) | (
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "final_sigmas_type": "zero",
        }
        if multistep
        else {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True}
    )


def _betas(parameterization: VariancePreserving) -> dict[str, Any]:
    schedule = full_spec(parameterization.schedule)
    kind = schedule["kind"]
    ends = {}
    if kind != "cosine":
        start, end = _ends(kind, schedule["beta_start"], schedule["beta_end"], schedule["timesteps"])
        ends = {"beta_start": start, "beta_end": end}
    prediction = {Eps: "epsilon", V: "v_prediction", X0: "sample"}[type(parameterization)]
    return {
        "num_train_timesteps": schedule["timesteps"],
        "beta_schedule": {ours: theirs for theirs, ours in _BETAS.items()}[kind],
        **ends,
        "rescale_betas_zero_snr": schedule["zero_terminal_snr"],
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # unused by trailing, and expected by stock pipelines
    }


def _variance_preserving(config: Mapping[str, Any]) -> Parameterization:
    prediction, betas = config.get("prediction_type", "epsilon"), config.get("beta_schedule", "linear")
    if prediction not in _VP or betas not in _BETAS or config.get("trained_betas") is not None:
        what = "trained_betas" if config.get("trained_betas") is not None else f"{prediction} over {betas}"
        raise UserError(f"the scheduler can't be represented here: {what}.")
    kind = _BETAS[betas]
    ends = {k: config.get(k, d) for k, d in (("beta_start", 1e-4), ("beta_end", 0.02))} if kind != "cosine" else {}
    schedule = {
        "class": "Schedule",
        "kind": kind,
        **ends,
        "timesteps": config.get("num_train_timesteps", 1000),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    return build({"class": _VP[prediction], "schedule": schedule})


def _edm(config: Mapping[str, Any]) -> Parameterization:
    if config.get("prediction_type", "epsilon") != "epsilon" or config.get("sigma_schedule", "karras") != "karras":
        raise UserError("the scheduler can't be represented here: EDM with v_prediction or exponential sigmas.")
    ends = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    return EDM(**{k: float(config.get(k, default)) for k, default in ends.items()})
