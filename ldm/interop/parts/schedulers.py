"""diffusers' scheduler configs and our parameterizations with their sampling defaults, each from the other."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.diffusion.schedule import _ends
from ldm.interop.files.values import number
from ldm.interop.parts.unet_config import full_spec
from ldm.interop.settings import scheduler_config

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
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
}
# whose own solver isn't here
_NEAREST = ("PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler")
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
    "lcm": {"_class_name": "LCMScheduler", "clip_sample": False, "set_alpha_to_one": True},
}
# These step by T // steps whatever the spacing, so that only "trailing" and "leading" end where the next step begins.
_STEPS_OF_THE_TABLE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
_NO_KARRAS = (*_STEPS_OF_THE_TABLE, "EulerAncestralDiscreteScheduler")
_VARIANCES = {"fixed_small": "posterior", "fixed_large": "beta"}
_ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
_EDM = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type")
_TABLE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip


def from_diffusers(config: Mapping[str, Any], where: str = "the scheduler") -> tuple[Parameterization, dict[str, Any]]:
    """What the network predicts, and the sampling defaults, of a scheduler's config.

    Raises UserError naming a setting of a wrong kind and one that changes what the network sees; every other one that
    has no counterpart here is named in a warning.
    """
    name = config.get("_class_name", "")
    if not isinstance(name, str) or name not in _SAMPLERS:
        raise UserError(f"{where}: the scheduler {name!r} has no counterpart here; known: {', '.join(_SAMPLERS)}.")
    settings = scheduler_config.read(name, config, where)
    _refuse(name, config, settings, where)
    sampling, honoured = _sampler(name, settings)
    read: Iterable[str]
    if name.startswith("FlowMatch") or settings["prediction_type"] == "flow_prediction":
        parameterization, more, read = _flow(config, settings, where)
    elif name.startswith("EDM"):
        parameterization, more, read = _edm(settings, where), {}, _EDM
    else:
        more, read = _spacing(name, settings, where)
        parameterization = _variance_preserving(settings | _zero_snr(config, where), where)
    _tell(name, config, settings, {*honoured, *read}, where)
    return parameterization, sampling | more


def stands_for(config: Mapping[str, Any], sampling: Mapping[str, Any], where: str) -> str | None:
    """The class whose own solver isn't here, so that the nearest sampler stands for it, which is told; else None."""
    name = config["_class_name"]
    if name not in _NEAREST:
        return None
    log.warning("%s: %s isn't here, %s samples in its place: images differ a little; sampler= takes another one",
                where, name, sampling["sampler"])  # fmt: skip
    return str(name)


def _refuse(name: str, config: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Refuses what changes what the network is fed with, and what contradicts itself."""
    prediction = settings.get("prediction_type")
    flow = name.startswith("FlowMatch") or prediction == "flow_prediction"
    wrong = [key for key in ("use_dynamic_shifting",) if settings.get(key)]
    if settings.get("timestep_type", "discrete") != "discrete" and prediction == "v_prediction":
        wrong.append(f"timestep_type={settings['timestep_type']!r} with v_prediction")
    if flow and settings["num_train_timesteps"] != 1000:
        wrong.append(f"num_train_timesteps={settings['num_train_timesteps']} of a flow")
    if name.startswith("FlowMatch") and config.get("prediction_type") not in (None, "flow_prediction"):
        wrong.append(f"prediction_type={config['prediction_type']!r} of a flow")
    if "use_flow_sigmas" in settings and settings["use_flow_sigmas"] != flow:
        wrong.append(f"use_flow_sigmas={settings['use_flow_sigmas']} with prediction_type={prediction!r}")
    if settings.get("use_karras_sigmas") and settings.get("use_exponential_sigmas"):
        wrong.append("use_karras_sigmas and use_exponential_sigmas at once")
    if wrong:
        raise UserError(f"{where}: the scheduler can't be represented here: {', '.join(wrong)}.")


def _tell(name: str, config: Mapping[str, Any], settings: Mapping[str, Any], honoured: set[str], where: str) -> None:
    """Names what is left out, and a default of diffusers that isn't ours."""
    left_out = scheduler_config.left_out(name, config, settings, honoured)
    if settings.get("clip_sample") and "clip_sample" not in config:
        done = "is taken" if "clip_sample" in honoured else "has no counterpart here and is left out"
        log.warning("%s doesn't say clip_sample: %s's default True %s", where, name, done)
    elif settings.get("clip_sample") and "clip_sample" not in honoured:
        left_out = [f"clip_sample={config['clip_sample']!r}", *(s for s in left_out if "clip_sample=" not in s)]
    if left_out:
        log.warning("%s: %s has no counterpart here and is left out", where, ", ".join(left_out))


def _sampler(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our sampler and its options, and the settings that it honours."""
    sampling: dict[str, Any] = {"sampler": _SAMPLERS[name]}
    honoured = [] if settings.get("clip_sample") else ["clip_sample", "clip_sample_range"]
    if name == "UniPCMultistepScheduler":
        # diffusers takes solver types of other solvers for bh2
        variant = "bh1" if settings["solver_type"] == "bh1" else "bh2"
        sampling |= {"order": max(1, min(settings["solver_order"], 3)), "variant": variant}
        honoured += ["solver_type"] + ["solver_order"] * (1 <= settings["solver_order"] <= 3)
    elif sampling["sampler"] == "dpmpp_2m" and settings.get("algorithm_type") in _ALGORITHMS:
        sampling["sampler"] = _ALGORITHMS[settings["algorithm_type"]]
        honoured += ["algorithm_type"]
    elif name == "DDPMScheduler":
        sampling["variance"] = _VARIANCES.get(settings["variance_type"], "posterior")
        honoured += ["variance_type"] * (settings["variance_type"] in _VARIANCES)
        if settings["clip_sample"]:
            sampling["clip"] = settings["clip_sample_range"]
            honoured += ["clip_sample", "clip_sample_range"]
    elif name == "HeunDiscreteScheduler":
        sampling["variant"] = "karras"
    elif settings.get("stochastic_sampling"):  # of a flow: denoise, renoise
        sampling["sampler"] = "lcm"
        honoured += ["stochastic_sampling"]
    if sampling["sampler"] == "lcm":
        sampling |= {"steps": 4, "guidance": 1.0}
    return sampling, honoured


def _spacing(name: str, settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Ours of that name, and the settings that it honours with those of the table of noise levels.

    Multistep solvers leave out the last point of "linspace": that is ours, to one timestep.
    """
    if name == "LCMScheduler":
        return _lcm_spacing(settings)
    for key, ours in _SIGMAS.items():
        if settings.get(key):
            return {"spacing": ours}, [*_TABLE, "timestep_spacing", "steps_offset", "flow_shift", key]
    spacing = settings["timestep_spacing"]
    if spacing not in _SPACINGS:
        raise UserError(f"{where}: the scheduler can't be represented here: timestep_spacing={spacing!r}.")
    honoured = [*_TABLE, "flow_shift"]
    if spacing != "leading":
        honoured += ["steps_offset"]  # which only "leading" has a use for
        honoured += ["timestep_spacing"] * (spacing == "trailing" or name not in _STEPS_OF_THE_TABLE)
    plain = name in _STEPS_OF_THE_TABLE or name.startswith(("DPMSolver", "UniPC")) or spacing != "linspace"
    return {} if plain else {"spacing": spacing}, honoured


def _lcm_spacing(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The timesteps that LCMScheduler chooses its own from: 50 of them, or all, which is our uniform spacing."""
    honoured = [*_TABLE, "timestep_spacing", "steps_offset"]  # neither of which it reads
    if settings["original_inference_steps"] == settings["num_train_timesteps"]:
        return {}, [*honoured, "original_inference_steps"]
    return {"spacing": "lcm"}, honoured


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
            **({"stochastic_sampling": True} if sampler == "lcm" else {}),
        }
    if isinstance(parameterization, EDM):
        if sampler == "lcm" or sampling.get("spacing") == "beta":
            raise UserError("a distilled EDM model's few steps have no scheduler in diffusers: export its base.")
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
    if sampler == "lcm":
        every = sampling.get("spacing") != "lcm"
        return scheduler | {"original_inference_steps": parameterization.schedule.timesteps if every else 50}
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


def _flow(
    config: Mapping[str, Any], settings: Mapping[str, Any], where: str
) -> tuple[Parameterization, dict[str, Any], tuple[str, ...]]:
    """A flow, its shift, and what was read of it; `t_max` is ours, which diffusers ignores."""
    key = "shift" if "shift" in settings else "flow_shift"
    if not settings[key] > 0:
        raise UserError(f"{where}: {key} is {settings[key]:g}, where a number above 0 belongs.")
    t_max = number(config.get("t_max", 0.999), f"{where}: t_max")
    idle = (*_TABLE, "timestep_spacing", "steps_offset")  # of the table of noise levels, which a flow doesn't read
    return Flow(t_max), {"shift": settings[key]}, (key, "use_flow_sigmas", "t_max", *idle)


def _zero_snr(config: Mapping[str, Any], where: str) -> dict[str, bool]:
    """The switch for zero SNR, which classes without one carry too: the network was trained so."""
    given = config.get("rescale_betas_zero_snr", False)
    if given not in (True, False, None):
        raise UserError(f"{where}: rescale_betas_zero_snr is {str(given)[:40]!r}, where true or false belongs.")
    return {"rescale_betas_zero_snr": bool(given)}


def _variance_preserving(settings: Mapping[str, Any], where: str) -> Parameterization:
    prediction, betas = settings["prediction_type"], settings["beta_schedule"]
    if prediction not in _VP or betas not in _BETAS or settings["trained_betas"] is not None:
        what = "trained_betas" if settings["trained_betas"] is not None else f"{prediction} over {betas}"
        raise UserError(f"{where}: the scheduler can't be represented here: {what}.")
    kind = _BETAS[betas]
    schedule = {
        "class": "Schedule",
        "kind": kind,
        **({key: settings[key] for key in ("beta_start", "beta_end")} if kind != "cosine" else {}),
        "timesteps": settings["num_train_timesteps"],
        "zero_terminal_snr": settings["rescale_betas_zero_snr"],
    }
    return build({"class": _VP[prediction], "schedule": schedule})


def _edm(settings: Mapping[str, Any], where: str) -> Parameterization:
    if settings["prediction_type"] != "epsilon" or settings["sigma_schedule"] != "karras":
        raise UserError(
            f"{where}: the scheduler can't be represented here: EDM with v_prediction or exponential sigmas."
        )
    return EDM(**{key: settings[key] for key in ("sigma_min", "sigma_max", "sigma_data")})
