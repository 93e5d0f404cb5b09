"""A diffusers scheduler config as a parameterization and sampling defaults."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.diffusion import EDM, Flow
from ldm.diffusion.parameterization import Parameterization
from ldm.interop.files.values import number
from ldm.interop.schedulers import settings as scheduler_settings
from ldm.interop.schedulers.equivalents import (
    BETA_SCHEDULES,
    EDM_SIGMAS,
    SIGMA_SPACINGS,
    STEPS_OF_THE_TABLE,
    VARIANCES,
)

log = logging.getLogger("ldm")
_PREDICTIONS = {"epsilon": "Eps", "v_prediction": "V", "sample": "X0"}
_SPACINGS = ("trailing", "leading", "linspace")  # the first two are ours, from the noisiest step on
# our sampler for each diffusers class, the same or the nearest; other classes are refused
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
_WITHOUT_OWN_SOLVER = ("PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler")
_ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
_EDM = (*EDM_SIGMAS, "sigma_schedule", "num_train_timesteps", "prediction_type")
_TABLE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip


def from_diffusers(config: Mapping[str, Any], where: str = "the scheduler") -> tuple[Parameterization, dict[str, Any]]:
    """What the network predicts, and the sampling defaults, from a scheduler's config.

    Raises UserError for a setting of a wrong type and for one that changes what the network sees. A warning names all
    other settings without a counterpart here.
    """
    name = config.get("_class_name", "")
    if not isinstance(name, str) or name not in _SAMPLERS:
        raise UserError(f"{where}: the scheduler {name!r} has no counterpart here; known: {', '.join(_SAMPLERS)}.")
    settings = scheduler_settings.read(name, config, where)
    _refuse(name, config, settings, where)
    sampling, honoured = _sampler(name, settings)
    read: Collection[str]
    if _is_flow(name, settings):
        parameterization, more, read = _flow(config, settings, where)
    elif name.startswith("EDM"):
        parameterization, more, read = _edm(settings, where), {}, _EDM
    else:
        more, read = _spacing(name, settings, where)
        parameterization = _variance_preserving(settings | _zero_snr(config, where), where)
    _warn_of_rest(name, config, settings, honoured={*honoured, *read}, where=where)
    return parameterization, sampling | more


def substituted_solver(config: Mapping[str, Any], sampling: Mapping[str, Any], where: str) -> str | None:
    """The class in a config if its own solver isn't available, with a warning that the nearest sampler replaces it."""
    name = config["_class_name"]
    if name not in _WITHOUT_OWN_SOLVER:
        return None
    log.warning("%s: %s isn't available, so %s is used instead: images differ a little; sampler=NAME chooses another",
                where, name, sampling["sampler"])  # fmt: skip
    return str(name)


def _is_flow(name: str, settings: Mapping[str, Any]) -> bool:
    return name.startswith("FlowMatch") or settings["prediction_type"] == "flow_prediction"


def _refuse(name: str, config: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Refuses settings that change what the network sees, and settings that contradict each other."""
    prediction, flow = settings.get("prediction_type"), _is_flow(name, settings)
    wrong = []
    if settings.get("use_dynamic_shifting"):
        wrong.append("use_dynamic_shifting")
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


def _warn_of_rest(
    name: str, config: Mapping[str, Any], settings: Mapping[str, Any], honoured: set[str], where: str
) -> None:
    """Warns of settings that are ignored, and of diffusers' default for clip_sample, which differs from ours."""
    left_out = scheduler_settings.left_out(name, config, settings, honoured)
    if settings.get("clip_sample") and "clip_sample" not in config:
        done = "is taken" if "clip_sample" in honoured else "has no counterpart here and is left out"
        log.warning("%s doesn't set clip_sample: %s's default True %s", where, name, done)
    elif settings.get("clip_sample") and "clip_sample" not in honoured:
        left_out = [f"clip_sample={config['clip_sample']!r}", *(s for s in left_out if "clip_sample=" not in s)]
    if left_out:
        log.warning("%s: %s has no counterpart here and is left out", where, ", ".join(left_out))


def _sampler(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our sampler with its options, and the settings that these cover."""
    sampling: dict[str, Any] = {"sampler": _SAMPLERS[name]}
    honoured: list[str] = []
    if not settings.get("clip_sample"):
        honoured += ["clip_sample", "clip_sample_range"]
    if name == "UniPCMultistepScheduler":
        options, read = _unipc(settings)
    elif name == "DDPMScheduler":
        options, read = _ddpm(settings)
    elif name == "HeunDiscreteScheduler":
        options, read = {"variant": "karras"}, []
    elif sampling["sampler"] == "dpmpp_2m" and settings.get("algorithm_type") in _ALGORITHMS:
        options, read = {"sampler": _ALGORITHMS[settings["algorithm_type"]]}, ["algorithm_type"]
    elif settings.get("stochastic_sampling"):  # for a flow: denoise, add noise
        options, read = {"sampler": "lcm"}, ["stochastic_sampling"]
    else:
        options, read = {}, []
    sampling |= options
    if sampling["sampler"] == "lcm":
        sampling |= {"steps": 4, "guidance": 1.0}
    return sampling, honoured + read


def _unipc(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    order = settings["solver_order"]
    variant = "bh1" if settings["solver_type"] == "bh1" else "bh2"  # as diffusers reads other solvers' types
    honoured = ["solver_type"]
    if 1 <= order <= 3:
        honoured.append("solver_order")
    return {"order": max(1, min(order, 3)), "variant": variant}, honoured


def _ddpm(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    variance = settings["variance_type"]
    options = {"variance": VARIANCES.get(variance, "posterior")}
    honoured = []
    if variance in VARIANCES:
        honoured.append("variance_type")
    if settings["clip_sample"]:
        options["clip"] = settings["clip_sample_range"]
        honoured += ["clip_sample", "clip_sample_range"]
    return options, honoured


def _spacing(name: str, settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Our spacing, and the settings that it and the table of noise levels cover.

    Multistep solvers drop the last point of "linspace": our uniform spacing is the same to within one timestep.
    """
    if name == "LCMScheduler":
        return _lcm_spacing(settings)
    for key, ours in SIGMA_SPACINGS.items():
        if settings.get(key):
            return {"spacing": ours}, [*_TABLE, "timestep_spacing", "steps_offset", "flow_shift", key]
    spacing = settings["timestep_spacing"]
    if spacing not in _SPACINGS:
        raise UserError(f"{where}: the scheduler can't be represented here: timestep_spacing={spacing!r}.")
    honoured = [*_TABLE, "flow_shift"]
    if spacing != "leading":
        honoured.append("steps_offset")  # which "leading" alone reads
    if spacing == "trailing" or (spacing == "linspace" and name not in STEPS_OF_THE_TABLE):
        honoured.append("timestep_spacing")
    is_multistep = name.startswith(("DPMSolver", "UniPC"))
    is_ours = spacing != "linspace" or name in STEPS_OF_THE_TABLE or is_multistep
    return {} if is_ours else {"spacing": spacing}, honoured


def _lcm_spacing(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The timesteps among which LCMScheduler chooses: 50 of them, or all, which is our uniform spacing."""
    honoured = [*_TABLE, "timestep_spacing", "steps_offset"]  # LCMScheduler reads neither spacing nor offset
    if settings["original_inference_steps"] == settings["num_train_timesteps"]:
        return {}, [*honoured, "original_inference_steps"]
    return {"spacing": "lcm"}, honoured


def _flow(
    config: Mapping[str, Any], settings: Mapping[str, Any], where: str
) -> tuple[Parameterization, dict[str, Any], tuple[str, ...]]:
    """A flow, its shift, and the settings that were read; `t_max` is ours and ignored by diffusers."""
    key = "shift" if "shift" in settings else "flow_shift"
    if not settings[key] > 0:
        raise UserError(f"{where}: {key} is {settings[key]:g}, where a number above 0 belongs.")
    t_max = number(config.get("t_max", 0.999), f"{where}: t_max")
    unused = (*_TABLE, "timestep_spacing", "steps_offset")  # of the table of noise levels, which a flow doesn't read
    return Flow(t_max), {"shift": settings[key]}, (key, "use_flow_sigmas", "t_max", *unused)


def _zero_snr(config: Mapping[str, Any], where: str) -> dict[str, bool]:
    """The switch for zero SNR. Any class may set it, even one without the option: the network was trained that way."""
    given = config.get("rescale_betas_zero_snr", False)
    if given not in (True, False, None):
        raise UserError(f"{where}: rescale_betas_zero_snr is {str(given)[:40]!r}, where true or false belongs.")
    return {"rescale_betas_zero_snr": bool(given)}


def _variance_preserving(settings: Mapping[str, Any], where: str) -> Parameterization:
    prediction, betas = settings["prediction_type"], settings["beta_schedule"]
    if prediction not in _PREDICTIONS or betas not in BETA_SCHEDULES or settings["trained_betas"] is not None:
        what = "trained_betas" if settings["trained_betas"] is not None else f"{prediction} over {betas}"
        raise UserError(f"{where}: the scheduler can't be represented here: {what}.")
    kind = BETA_SCHEDULES[betas]
    schedule: dict[str, Any] = {"class": "Schedule", "kind": kind}
    if kind != "cosine":
        schedule |= {key: settings[key] for key in ("beta_start", "beta_end")}
    schedule["timesteps"] = settings["num_train_timesteps"]
    schedule["zero_terminal_snr"] = settings["rescale_betas_zero_snr"]
    return build({"class": _PREDICTIONS[prediction], "schedule": schedule})


def _edm(settings: Mapping[str, Any], where: str) -> Parameterization:
    if settings["prediction_type"] != "epsilon" or settings["sigma_schedule"] != "karras":
        raise UserError(
            f"{where}: the scheduler can't be represented here: EDM with v_prediction or exponential sigmas."
        )
    return EDM(**{key: settings[key] for key in EDM_SIGMAS})
