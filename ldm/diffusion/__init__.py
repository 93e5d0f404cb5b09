"""The mathematics of diffusion, as functions of the noise level sigma in x = x0 + sigma noise."""

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Terms, autoguidance, away, classifier_free, guided
from ldm.diffusion.noise import (
    LogitNormal,
    LogNormal,
    TrainingNoise,
    UniformTimesteps,
    default_noise,
    resolution_shift,
)
from ldm.diffusion.parameterization import EDM, X0, Coefficients, Eps, Flow, Parameterization, V, VariancePreserving
from ldm.diffusion.samplers import (
    SAMPLERS,
    DenoiseFn,
    calls,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    get_sampler,
    heun,
    lcm,
    unipc,
)
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.slerp import slerp
from ldm.diffusion.weighting import LearnedUncertainty, MinSNR, Uniform, Weighting

__all__ = [
    "Terms",
    "classifier_free",
    "EDM",
    "SAMPLERS",
    "X0",
    "Coefficients",
    "DenoiseFn",
    "Denoiser",
    "Eps",
    "Flow",
    "LearnedUncertainty",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Parameterization",
    "Schedule",
    "TrainingNoise",
    "Uniform",
    "UniformTimesteps",
    "V",
    "VariancePreserving",
    "Weighting",
    "autoguidance",
    "away",
    "calls",
    "ddim",
    "ddpm",
    "default_noise",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "get_sampler",
    "guided",
    "heun",
    "lcm",
    "resolution_shift",
    "slerp",
    "unipc",
]
