"""The settings in a diffusers scheduler config, each checked for its type, with the defaults of its class.

The defaults are diffusers' own (0.36 to 0.42), so diffusers needn't be installed to read a folder.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.values import is_off, number

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip
_THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading"}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_SOLVER = {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}
_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", **_SOLVER}
_TABLE_DPM = {
    **_TABLE, **_THRESHOLDS, **_DPM, **_SIGMAS, **_FLOW,
    "lambda_min_clipped": float("-inf"), "variance_type": None,
}  # fmt: skip
_UNIPC = {"predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None}
_ENDS = {"sigma_min": None, "sigma_max": None}
_EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0,
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "final_sigmas_type": "zero",
}  # fmt: skip
_EULER = {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_TABLE, **_THRESHOLDS, **_CLIP, **_LEADING, **_ZERO_SNR, "variance_type": "fixed_small"},
    "DDIMScheduler": {**_TABLE, **_THRESHOLDS, **_CLIP, **_LEADING, **_ZERO_SNR, "set_alpha_to_one": True},
    "PNDMScheduler": {**_TABLE, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "LMSDiscreteScheduler": {**_TABLE, **_SIGMAS},
    "UniPCMultistepScheduler": {
        **_TABLE, **_THRESHOLDS, **_SOLVER, **_UNIPC, **_SIGMAS, **_FLOW, **_ENDS, **_ZERO_SNR, "shift_terminal": None,
    },
    "DPMSolverMultistepScheduler": {**_TABLE_DPM, **_ZERO_SNR, "euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": {**_TABLE_DPM, "lower_order_final": False},
    "EulerDiscreteScheduler": {**_TABLE, **_SIGMAS, **_ENDS, **_EULER, **_ZERO_SNR},
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_ZERO_SNR},
    "HeunDiscreteScheduler": {
        **_TABLE, **_SIGMAS, **_CLIP, "clip_sample": False, "beta_start": 0.00085, "beta_end": 0.012,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "invert_sigmas": False,
        "shift_terminal": None, "stochastic_sampling": False, **_SIGMAS,
    },
    "LCMScheduler": {
        **_TABLE, **_THRESHOLDS, **_CLIP, **_LEADING, **_ZERO_SNR, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": True, "timestep_scaling": 10.0,
        "original_inference_steps": 50,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {**_EDM, **_THRESHOLDS, **_DPM, "euler_at_final": False},
}  # fmt: skip
# read only together with a setting that is refused or named; `skip_prk_steps` exists only in PNDM's own solver
_IDLE = (
    "dynamic_thresholding_ratio", "sample_max_value", "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "time_shift_type", "skip_prk_steps",
)  # fmt: skip
_MOST_TIMESTEPS = 100_000


def read(name: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every setting of the class `name`. Raises UserError for a value of the wrong type."""
    settings = dict(DEFAULTS[name])
    for key in settings.keys() & config.keys() - set(_IDLE):
        settings[key] = _of_kind(config[key], settings[key], f"{where}: {key}")
    if not 2 <= settings["num_train_timesteps"] <= _MOST_TIMESTEPS:
        many = settings["num_train_timesteps"]
        raise UserError(f"{where}: num_train_timesteps is {many}, where 2 to {_MOST_TIMESTEPS} belong.")
    return settings


def left_out(name: str, config: Mapping[str, Any], settings: Mapping[str, Any], honoured: Collection[str]) -> list[str]:
    """Settings in a config that differ from the class's default and aren't `honoured`.

    Settings that the class doesn't have, which its pipelines ignore, are listed too, unless they are off or some other
    class's default.
    """
    found = []
    for key, value in config.items():
        if key.startswith("_") or key in honoured or key in _IDLE:
            continue
        if key in settings:
            usual = [DEFAULTS[name][key]]
        else:
            usual = [default[key] for default in DEFAULTS.values() if key in default]
            if is_off(value) or value in usual:
                continue
        if not (is_off(value) and any(map(is_off, usual or [None]))) and value not in usual:
            found.append(f"{key}={value!r}")
    return found


def _of_kind(value: Any, default: Any, what: str) -> Any:
    """A value, converted to the type of its default. One whose default is None or a list is returned as it is."""
    if isinstance(default, bool):
        return _switch(value, what)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise UserError(f"{what} is {str(value)[:40]!r}, where a name such as {default!r} belongs.")
        return value
    if not isinstance(default, (int, float)) or value == default:
        return value
    if isinstance(value, str):  # diffusers can't compute with it either
        raise UserError(f"{what} is the text {value[:40]!r}, where a number belongs.")
    plain = number(value, what)
    if isinstance(default, float):
        return plain
    if plain != int(plain):
        raise UserError(f"{what} is {plain}, where a whole number belongs.")
    return int(plain)


def _switch(value: Any, what: str) -> bool:
    if value not in (True, False, None):
        raise UserError(f"{what} is {str(value)[:40]!r}, where true or false belongs.")
    return bool(value)
