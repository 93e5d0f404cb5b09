"""Samplers: free functions from noise to an image, over any `denoise(x, sigma)`.

All share one signature. `x` (B, C, H, W) is noise, N(0, sigmas[0]^2), float32 or float64; `sigmas` (N + 1,) falls
strictly, to 0 for a clean image. `noise(x)` draws the step noise, `on_step(i, n, denoised)` is called after each of the
n steps, i from 0. What is returned is x at the last sigma, for 0 the denoised image.

Everything stays on x's device and nothing waits for it: what depends on sigma alone is computed in Python's float64
from `sigmas`, which stays on the CPU. A step towards the denoised image is written as one `lerp`, which rounds less
than x + (s - sigma) d.

DDPM, DDIM, Euler and Euler-ancestral are one step: move down to sigma_down <= s, then add noise up to s. Each costs
N calls of `denoise`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.parameterization import at_least_float32
from ldm.errors import UserError, did_you_mean

DenoiseFn = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), sigma (B,)) -> x0 (B, C, H, W)
NoiseFn = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> standard normal noise like it
OnStep = Callable[[int, int, Tensor], Any]  # (i, n, denoised)


def ddpm(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    variance: str = "posterior",
    clip: float | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on the whole table or a part of it.

    The step noise has the `posterior` variance s^2 (sigma^2 - s^2) / sigma^2 or the forward process's, `beta`, which is
    (sigma^2 - s^2)(1 + s^2) / (1 + sigma^2). With `clip` the denoised image is clamped to [-clip, clip]: for pixels.
    """
    if variance not in ("posterior", "beta"):
        raise UserError(f"ddpm has no variance '{variance}'.{did_you_mean(variance, ('posterior', 'beta'))}")

    def split(sigma: float, s: float) -> tuple[float, float]:
        down, up = _split(sigma, s, 1.0)
        if variance == "beta" and s > 0:
            up = math.sqrt((sigma**2 - s**2) * (1 + s**2) / (1 + sigma**2))
        return down, up

    clipped: DenoiseFn = denoise if clip is None else lambda x, sigma: denoise(x, sigma).clamp(-clip, clip)
    return _ancestral(clipped, x, sigmas, split, noise, on_step)


def ddim(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): deterministic at eta = 0, DDPM with the posterior variance at eta = 1."""
    return _ancestral(denoise, x, sigmas, lambda sigma, s: _split(sigma, s, eta), noise, on_step)


def euler(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Euler's method on the probability-flow ODE dx/dsigma = (x - D) / sigma: DDIM for VP, Euler in t for flow.

    First order. It draws no noise.
    """
    return _ancestral(denoise, x, sigmas, lambda sigma, s: (s, 0.0), noise, on_step)


def euler_ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Euler to sigma_down, then noise (k-diffusion's sampler of that name): in sigma-space the same as `ddim`."""
    return ddim(denoise, x, sigmas, noise=noise, on_step=on_step, eta=eta)


def heun(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1). Second order.

    With e the Euler step and D, D' the denoised images at x and e, the mean of both slopes gives
    e + (sigma - s) / (2 s) (D' - D): the correction without the slopes' cancellation. Costs 2N - 1 calls of `denoise`
    on a grid that ends at 0, where the last step is Euler's. It draws no noise.
    """
    x, steps = _start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, _full(x, sigma))
        x = torch.lerp(denoised, x, s / sigma)
        if s > 0:
            x = torch.add(x, denoise(x, _full(x, s)) - denoised, alpha=(sigma - s) / (2 * s))
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def dpmpp_2m(
    denoise: DenoiseFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn | None = None, on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order in ln sigma from the last two denoised images.

    First order on the first step and on the one to 0. Costs N calls of `denoise`. It draws no noise.
    """
    return dpmpp_2m_sde(denoise, x, sigmas, noise=noise, on_step=on_step, eta=0.0)


def dpmpp_2m_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 5; k-diffusion's midpoint form), `dpmpp_2m` at eta = 0.

    With h = ln(sigma / s) and D* = D + (D - D_prev) h / (2 h_prev),
    x <- e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) D* + s sqrt(1 - e^(-2 eta h)) noise. Costs N calls of `denoise`.
    """
    noise = noise or torch.randn_like
    x, steps = _start(x, sigmas)
    previous, h_previous = None, 0.0
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, _full(x, sigma))
        if s == 0:
            x = denoised  # h is infinite: the limit, without the correction
        else:
            h = math.log(sigma / s)
            ahead = denoised if previous is None else denoised.lerp(previous, -h / (2 * h_previous))
            x = torch.lerp(ahead, x, (s / sigma) ** (1 + eta))
            if eta > 0:
                x = x.add_(noise(x), alpha=s * math.sqrt(-math.expm1(-2 * eta * h)))
            previous, h_previous = denoised, h
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def _ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    split: Callable[[float, float], tuple[float, float]],
    noise: NoiseFn | None,
    on_step: OnStep | None,
) -> Tensor:
    """`split(sigma, s)` says how far a step goes down, and the standard deviation of the noise that it adds then."""
    noise = noise or torch.randn_like
    x, steps = _start(x, sigmas)
    for i, (sigma, s) in enumerate(steps):
        denoised = denoise(x, _full(x, sigma))
        down, up = split(sigma, s)
        x = torch.lerp(denoised, x, down / sigma)
        if up > 0:
            x = x.add_(noise(x), alpha=up)
        if on_step:
            on_step(i, len(steps), denoised)
    return x


def _split(sigma: float, s: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = s^2; eta is the share of DDPM's posterior noise."""
    up = min(eta * s * math.sqrt(sigma**2 - s**2) / sigma, s)
    return math.sqrt(s**2 - up**2), up


def _start(x: Tensor, sigmas: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """x in float32 or wider, and the pairs (sigma, next sigma) as Python's floats."""
    values = sigmas.tolist()
    if len(values) < 2 or values[-1] < 0 or any(s >= sigma for sigma, s in _pairs(values)):
        raise UserError(f"sigmas have to fall strictly, to 0 or above: {values}. A parameterization's grid does.")
    return at_least_float32(x), list(_pairs(values))


def _pairs(values: list[float]) -> Iterator[tuple[float, float]]:
    return zip(values[:-1], values[1:], strict=True)


def _full(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)  # (B,)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    sampler.__name__: sampler for sampler in (ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde)
}


def get_sampler(name: str, **options: Any) -> Callable[..., Tensor]:
    """The sampler of that name, with its own options (eta, variance, clip) set, both checked."""
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler '{name}'.{did_you_mean(name, SAMPLERS)}")
    known = [key for key in inspect.signature(SAMPLERS[name]).parameters if key not in _COMMON]
    for key in options:
        if key not in known:
            raise UserError(f"the sampler {name} has no option '{key}'.{did_you_mean(key, known)}")
    return functools.partial(SAMPLERS[name], **options) if options else SAMPLERS[name]


_COMMON = ("denoise", "x", "sigmas", "noise", "on_step")


def calls(name: str, steps: int) -> int:
    """How often the sampler evaluates the denoiser on a grid of `steps` steps that ends at 0."""
    get_sampler(name)
    return 2 * steps - 1 if name == "heun" else steps
