"""Schedulers: an imported config samples as diffusers' class does with it, and is exported as it was."""

import logging

import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import EDM, Denoiser, Eps, Flow, Schedule, V, get_sampler
from ldm.interop import schedulers
from ldm.interop.schedulers import settings as scheduler_settings
from tests.interop.models import diffusers

ENDS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = ENDS | {"timestep_spacing": "trailing"}
UNIPC = {**TRAILING, "final_sigmas_type": "zero"}
DPM = {**UNIPC, "algorithm_type": "dpmsolver++"}
EXACT = {
    "ddim": ("DDIMScheduler", TRAILING | {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", TRAILING),
    "euler linspace": ("EulerDiscreteScheduler", ENDS),
    "euler v": ("EulerDiscreteScheduler", TRAILING | {"prediction_type": "v_prediction"}),
    "euler karras": ("EulerDiscreteScheduler", ENDS | {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", TRAILING),
    "dpm++": ("DPMSolverMultistepScheduler", DPM),
    "unipc": ("UniPCMultistepScheduler", UNIPC),
    "unipc order 3": ("UniPCMultistepScheduler", UNIPC | {"solver_order": 3}),
    "unipc v": ("UniPCMultistepScheduler", UNIPC | {"prediction_type": "v_prediction"}),
    "edm euler": ("EDMEulerScheduler", {}),
    "edm dpm++": ("EDMDPMSolverMultistepScheduler", {}),
}


EULER = {"_class_name": "EulerDiscreteScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def network(x, t, cond=None):
    """Smooth, and without weights."""
    t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
    return torch.sin(1.7 * x + 0.3 * x.roll(1, -1)) * (0.4 + t.view(-1, 1, 1, 1) / 2000)


def ours(parameterization, sampling, noise, steps):
    options = dict(sampling)
    sigmas = parameterization.grid(steps, options.pop("spacing", None), options.pop("shift", 1.0))
    run = get_sampler(options.pop("sampler"), **options)
    return run(Denoiser(network, parameterization), noise * sigmas[0].item(), sigmas)


def theirs(scheduler, noise, sigma, steps):
    scheduler.set_timesteps(steps)
    x = noise * sigma
    if scheduler.init_noise_sigma == 1:  # x / sqrt(1 + sigma^2)
        x = x / (1 + sigma**2) ** 0.5
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


@pytest.mark.parametrize("name", EXACT)
def test_an_imported_config_generates_what_its_class_generates(name):
    kind, options = EXACT[name]
    scheduler = getattr(diffusers, kind)(**options)
    parameterization, sampling = schedulers.from_diffusers({"_class_name": kind, **scheduler.config})
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = ours(parameterization, sampling, noise, 20)
    expected = theirs(scheduler, noise, parameterization.sigma_max, 20)
    assert expected.std() > 0.05
    assert (result - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("multistep", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_linspace_of_multistep_solvers_is_ours_to_one_timestep(multistep):
    scheduler = getattr(diffusers, multistep)(**ENDS)
    scheduler.set_timesteps(20)
    parameterization, sampling = schedulers.from_diffusers({"_class_name": multistep, **scheduler.config})
    t = parameterization.schedule.timestep(parameterization.grid(20, sampling.get("spacing"))[:-1])
    assert (t - scheduler.timesteps).abs().max() <= 1


OUT = [
    {"sampler": "ddim"},
    {"sampler": "euler", "spacing": "linspace"},
    {"sampler": "ddpm", "variance": "beta", "clip": 1.0},
    {"sampler": "ddpm", "variance": "posterior"},
    {"sampler": "euler"},
    {"sampler": "euler_ancestral"},
    {"sampler": "heun", "variant": "karras", "spacing": "karras"},
    {"sampler": "dpmpp_2m", "spacing": "karras"},
    {"sampler": "dpmpp_2m", "spacing": "exponential"},
    {"sampler": "dpmpp_2m_sde"},
    {"sampler": "unipc", "order": 3, "variant": "bh1"},
]


@pytest.mark.parametrize("sampling", OUT, ids=str)
@pytest.mark.parametrize("kind", [Eps, V])
def test_a_way_of_sampling_comes_back(kind, sampling):
    config = schedulers.to_diffusers(kind(Schedule()), sampling)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    back, again = schedulers.from_diffusers({"_class_name": config["_class_name"], **scheduler.config})
    assert again == sampling
    assert type(back) is kind and back.sigma_max == kind(Schedule()).sigma_max


def test_what_is_left_out_is_reported(caplog):
    config = {"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "solver_order": 3}
    config |= {"algorithm_type": "dpmsolver"}
    with caplog.at_level(logging.WARNING, "ldm"):
        schedulers.from_diffusers(config)
    for word in ("thresholding=True", "solver_order=3", "algorithm_type='dpmsolver'"):
        assert word in caplog.text
    caplog.clear()
    schedulers.from_diffusers({"_class_name": "DDIMScheduler", "clip_sample": True})
    assert "clip_sample=True" in caplog.text
    caplog.clear()
    schedulers.to_diffusers(Eps(), {"sampler": "ddim", "spacing": "kl_optimal"})
    assert "kl_optimal" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FLOW | {"shift": 3.0, "use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"_class_name": "EDMEulerScheduler", "rho": 3.0}, "rho=3.0"),
        (EULER | {"sigma_min": 0.1, "sigma_max": 5.0}, "sigma_min=0.1, sigma_max=5.0"),
        (EULER | {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        (EULER | {"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
        (EULER | {"timestep_spacing": "leading", "steps_offset": 1}, "timestep_spacing='leading', steps_offset=1"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "solver_type='heun'"),
        ({"_class_name": "DDIMScheduler", "snr_shift_scale": 3.0}, "snr_shift_scale=3.0"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "set_alpha_to_one=False"),
        ({"_class_name": "DDIMScheduler", "use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"_class_name": "DDIMScheduler"}, "doesn't set clip_sample: DDIMScheduler's default True has no counterpart"),
        ({"_class_name": "DDPMScheduler"}, "doesn't set clip_sample: DDPMScheduler's default True is taken"),
    ],
)
def test_every_setting_other_than_its_classs_default_is_honoured_or_named(config, message, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        schedulers.from_diffusers(config)
    assert message in caplog.text


def test_what_only_other_classes_have_needs_no_word_where_it_is_their_default(caplog):
    """As in SDXL-Turbo's config, which is one of EulerDiscreteScheduler under another class's name."""
    others = {"interpolation_type": "linear", "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False}
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", **others}
    with caplog.at_level(logging.WARNING, "ldm"):
        assert schedulers.from_diffusers(turbo)[1]["sampler"] == "euler_ancestral"
    assert "left out" not in caplog.text


@pytest.mark.parametrize("name", scheduler_settings.DEFAULTS)
def test_a_config_of_diffusers_own_defaults_needs_no_word(name, caplog):
    config = dict(getattr(diffusers, name)().config)
    idle = {"timestep_spacing", "steps_offset"} if "Singlestep" in name else set()  # it has "linspace" alone
    assert config == config | {k: v for k, v in scheduler_settings.DEFAULTS[name].items() if k not in idle}
    clip = {"clip_sample": False} if "clip_sample" in config else {}
    schedulers.from_diffusers({"_class_name": name, **config, **clip})
    assert not caplog.records


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "TCDScheduler"}, "TCDScheduler"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "sigmoid"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "odd"}, "odd"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}, "exponential"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": "x"}, "sigma_data"),
        ({"_class_name": ["DDIMScheduler"]}, "DDIMScheduler"),
        (EULER | {"timestep_type": "continuous", "prediction_type": "v_prediction"}, "continuous"),
        (EULER | {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "at once"),
        (EULER | {"timestep_spacing": ["leading"]}, "timestep_spacing"),
        (EULER | {"num_train_timesteps": "1000"}, "num_train_timesteps is the text"),
        (EULER | {"num_train_timesteps": 1000.5}, "whole number"),
        (EULER | {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        (EULER | {"beta_start": "x"}, "beta_start"),
        (EULER | {"beta_end": None}, "beta_end"),
        (EULER | {"rescale_betas_zero_snr": "no"}, "true or false"),
        (FLOW | {"num_train_timesteps": 500}, "num_train_timesteps=500"),
        (FLOW | {"prediction_type": "epsilon"}, "prediction_type='epsilon'"),
        *((FLOW | {"shift": shift}, "shift is") for shift in (None, "auto", 0, float("nan"))),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "DDPMScheduler", "clip_sample": "false"}, "true or false"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": None}, "solver_order"),
    ],
)
def test_what_cant_be_represented_is_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        schedulers.from_diffusers(config)


def test_diffusers_bh1_is_exported_such_that_it_gives_numbers():
    config = schedulers.to_diffusers(Eps(), {"sampler": "unipc", "variant": "bh1"})
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.UniPCMultistepScheduler.from_config(config)
    expected = theirs(scheduler, noise, Eps().sigma_max, 20)
    result = ours(Eps(), {"sampler": "unipc", "variant": "bh1"}, noise, 20)
    assert (result - expected).norm() / expected.norm() < 0.05  # theirs ends at sigma_0, which is 0.03


@pytest.mark.parametrize(("shift", "theirs"), [(3.0, 3.0), ("auto", 1.0), (None, 1.0)])
def test_flows_shift_comes_back(shift, theirs):
    config = schedulers.to_diffusers(Flow(), {"sampler": "euler", "shift": shift})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    assert schedulers.from_diffusers({"_class_name": config["_class_name"], **scheduler.config})[1]["shift"] == theirs


@pytest.mark.parametrize("kind", [EDM, Flow])
def test_edm_and_flow_come_back(kind):
    again, _ = schedulers.from_diffusers(schedulers.to_diffusers(kind()))
    assert type(again) is kind and again.sigma_max == pytest.approx(kind().sigma_max)
