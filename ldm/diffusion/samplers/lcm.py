"""The sampler of consistency models: denoise, then add noise of the next level."""

import torch
from torch import Tensor

from ldm.diffusion.samplers.steps import DenoiseFn, NoiseFn, OnStep, full, start


def lcm(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x <- D(x, sigma) + s noise.

    It is for models made by `finetune=distill`, whose D is the end of the ODE's trajectory; for them it is exact with
    any number of steps, even one. The D of other models is the mean of all possible images, so the result is blurred.
    It costs N calls of `denoise`.
    """
    noise = noise or torch.randn_like
    x, steps = start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        x = denoised if s == 0 else torch.add(denoised, noise(x), alpha=s)
        if on_step:
            on_step(i, len(steps), denoised)
    return x
