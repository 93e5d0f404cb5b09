"""The sampler of models that jump: denoise, then renoise to the next level."""

import torch
from torch import Tensor

from ldm.diffusion.samplers.steps import DenoiseFn, NoiseFn, OnStep, full, start


def lcm(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x <- D(x, sigma) + s noise, at 0 D itself.

    For models made by `finetune=distill`, whose D is where the ODE's trajectory ends: exact in any number of steps, one
    too. Another model's D is the mean of what x may have been, and comes out blurred. Costs N calls of `denoise`.
    """
    noise = noise or torch.randn_like
    x, steps = start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, full(x, sigma))
        x = denoised if s == 0 else torch.add(denoised, noise(x), alpha=s)
        if on_step:
            on_step(i, len(steps), denoised)
    return x
