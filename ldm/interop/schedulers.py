"""diffusers' scheduler configs and our parameterizations with their sampling defaults, each from the other."""

import logging
from collections.abc import Mapping
from typing import Any

from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.diffusion.schedule import _ends
from ldm.errors import UserError
from ldm.interop.unet import full_spec
from ldm.registry import build

log = logging.getLogger("ldm")
_VP = {"epsilon": "Eps", "v_prediction": "V", "sample": "X0"}
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_SPACINGS = {"trailing": None, "leading": None, "linspace": "linspace"}  # None: ours, from the noisiest step on
_SIGMAS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
# the sampler of ours for a class of theirs, the same one or the nearest; a class that isn't here is refused
_SAMPLERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "dpmpp_2m",
    "LMSDiscreteScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
}
# The other way: what our samplers are there, and with which settings.
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
_DPM |= {"final_sigmas_type": "zero"}
_CLASSES: dict[str, dict[str, Any]] = {
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_small"},
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler_ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "dpmpp_2m": {"_class_name": "DPMSolverMultistepScheduler", **_DPM},
    "dpmpp_2m_sde": {"_class_name": "DPMSolverMultistepScheduler", **_DPM, "algorithm_type": "sde-dpmsolver++"},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "zero"},
}
# These step by T // steps whatever the spacing, so that only "trailing" and "leading" end where the next step begins.
_STEPS_OF_THE_TABLE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
_NO_KARRAS = (*_STEPS_OF_THE_TABLE, "EulerAncestralDiscreteScheduler")
_VARIANCES = {"fixed_small": "posterior", "fixed_large": "beta"}
_ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
# settings that change the picture and that no sampler here has: said, and left out
_LEFT_OUT = (
    "thresholding", "use_beta_sigmas", "use_lu_lambdas", "stochastic_sampling", "invert_sigmas", "shift_terminal",
    "euler_at_final", "disable_corrector",
)  # fmt: skip


def from_diffusers(config: Mapping[str, Any]) -> tuple[Parameterization, dict[str, Any]]:
    """What the network predicts, and the sampling defaults, of a scheduler's config."""
    name = config.get("_class_name", "")
    if name not in _SAMPLERS:
        raise UserError(f"the scheduler {name!r} has no counterpart here; known: {', '.join(_SAMPLERS)}.")
    sampling, left_out = _sampler(name, config)
    left_out += [f"{key}={config[key]!r}" for key in _LEFT_OUT if config.get(key)]
    if left_out:
        log.warning("the scheduler's %s has no counterpart here and is left out", ", ".join(left_out))
    if name.startswith("FlowMatch"):
        if config.get("use_dynamic_shifting"):
            raise UserError("the scheduler can't be represented here: use_dynamic_shifting=True.")
        return Flow(), sampling | {"shift": float(config.get("shift", 1.0))}
    if name.startswith("EDM"):
        return _edm(config), sampling
    if config.get("prediction_type") == "flow_prediction":
        return Flow(), sampling | {"shift": float(config.get("flow_shift", 1.0))}
    if spacing := _spacing(name, config):
        sampling["spacing"] = spacing
    return _variance_preserving(config), sampling


def _sampler(name: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our sampler and its options, and the settings that it hasn't."""
    sampling: dict[str, Any] = {"sampler": _SAMPLERS[name]}
    left_out = []
    if name == "UniPCMultistepScheduler":
        # diffusers takes solver types of other solvers for bh2
        variant = "bh1" if config.get("solver_type") == "bh1" else "bh2"
        sampling |= {"order": min(int(config.get("solver_order", 2)), 3), "variant": variant}
        left_out += [key for key in ("predict_x0", "lower_order_final") if config.get(key, True) is not True]
        left_out += ["solver_order"] if config.get("solver_order", 2) > 3 else []
    elif sampling["sampler"] == "dpmpp_2m" and "algorithm_type" in config:
        kind = config["algorithm_type"]
        sampling["sampler"] = _ALGORITHMS.get(kind, "dpmpp_2m")
        left_out += [] if kind in _ALGORITHMS else [f"algorithm_type={kind!r}"]
        left_out += [] if config.get("solver_order", 2) == 2 else [f"solver_order={config['solver_order']!r}"]
    elif name == "DDPMScheduler":
        kind = config.get("variance_type", "fixed_small")
        sampling["variance"] = _VARIANCES.get(kind, "posterior")
        left_out += [] if kind in _VARIANCES else [f"variance_type={kind!r}"]
    elif name == "HeunDiscreteScheduler":
        sampling["variant"] = "karras"
    if config.get("clip_sample"):
        if name == "DDPMScheduler":
            sampling["clip"] = float(config.get("clip_sample_range", 1.0))
        else:
            left_out.append("clip_sample=True")
    return sampling, left_out


def _spacing(name: str, config: Mapping[str, Any]) -> str | None:
    """Ours of that name. Multistep solvers leave out the last point of "linspace": that is ours, to one timestep."""
    for key, spacing in _SIGMAS.items():
        if config.get(key):
            return spacing
    spacing = config.get("timestep_spacing", "leading" if name in _STEPS_OF_THE_TABLE else "linspace")
    if spacing not in _SPACINGS:
        raise UserError(f"the scheduler can't be represented here: timestep_spacing={spacing!r}.")
    return None if name in _STEPS_OF_THE_TABLE or name.startswith(("DPMSolver", "UniPC")) else _SPACINGS[spacing]


def to_diffusers(parameterization: Parameterization, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A scheduler config that samples as `sampling` says, with our last step, to sigma = 0."""
    sampling = sampling or {}
    sampler = sampling.get("sampler", "dpmpp_2m")
    multistep = sampler.startswith(("dpmpp", "unipc"))
    if isinstance(parameterization, Flow):
        shift = sampling.get("shift") or 1.0  # theirs and ours are the same: t' = k t / (1 + (k - 1) t)
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 1.0 if shift == "auto" else float(shift),  # auto is 1 at the size of training
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
    scheduler = _betas(parameterization) | _CLASSES[sampler] | _options(sampling)
    if sampler == "heun" and sampling.get("variant") != "karras":
        log.warning("diffusers' Heun is ours with variant=karras: it samples a little differently, at few steps worse")
    spacing = sampling.get("spacing")
    if spacing in _SIGMAS.values() and scheduler["_class_name"] not in _NO_KARRAS:
        scheduler |= {"timestep_spacing": "linspace"} | {key: True for key, ours in _SIGMAS.items() if ours == spacing}
    elif spacing == "linspace" and not multistep and scheduler["_class_name"] not in _STEPS_OF_THE_TABLE:
        scheduler["timestep_spacing"] = "linspace"
    elif spacing not in (None, "uniform", "table"):
        log.warning("diffusers has no spacing %r for %s: it is exported as uniform", spacing, sampler)
    return scheduler


def _options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler's own options are called there."""
    options: dict[str, Any] = {}
    if sampling.get("sampler") == "unipc":
        options = {"solver_order": sampling.get("order", 2), "solver_type": sampling.get("variant", "bh2")}
        if options["solver_type"] == "bh1":  # at 0 diffusers' bh1 isn't a number
            options["final_sigmas_type"] = "sigma_min"
    if sampling.get("sampler") == "ddpm":
        theirs = {ours: name for name, ours in _VARIANCES.items()}
        options["variance_type"] = theirs[sampling.get("variance", "posterior")]
        if clip := sampling.get("clip"):
            options |= {"clip_sample": True, "clip_sample_range": clip}
    return options


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
