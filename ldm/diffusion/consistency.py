"""Consistency distillation: a student learns to jump along the trajectory on which its base takes many steps.

The probability-flow ODE leads from x at sigma to a point at a lower level `end`; that point is the consistency function
f(x, sigma) (Song et al. 2023). All points of a trajectory have the same f, so a student can learn it from neighbours:

    f_student(x, sigma)  ->  f_average(x', s),    x' = one step of the frozen base's ODE from sigma down to s

with f(x, end) = x, which keeps f from becoming constant. If the base is guided in that step, guidance is baked into the
student, which then needs one evaluation where the base needs two (Luo et al. 2023, "Latent consistency models").

If all levels have the same end, sigma_min, the sampler `lcm` works with any number of steps. Several segments, each
with its own end, are easier to learn, since jumps are shorter; they take one step of `euler` each (Heek et al. 2024,
"Multistep consistency models").
"""

from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion.guidance import ConditionalDenoiseFn, rescaled
from ldm.diffusion.parameterization import Parameterization, broadcast
from ldm.diffusion.samplers import DenoiseFn

SOLVERS = ("euler", "heun")


def jump(denoise: DenoiseFn, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
    """f(x, sigma) = c_skip x + c_out D(x, sigma), c_skip = end / sigma and c_out = 1 - c_skip: (B, C, H, W).

    This is Euler's step from `sigma` (B,) to `end` (B,) along the student's D. So f(x, end) = x whatever D is, and to
    samplers the student is a denoiser like any other.
    """
    return torch.lerp(denoise(x, sigma), x, broadcast(end / sigma, x))


def inverse_jump(f: Tensor, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
    """The denoised image (B, C, H, W) with which a jump from `x` at `sigma` (B,) to `end` (B,), a lower level, arrives
    at `f`."""
    skip = broadcast(end / sigma, x)
    return (f - skip * x) / (1 - skip)


def ode_step(denoise: DenoiseFn, x: Tensor, sigma: Tensor, s: Tensor, solver: str = "euler") -> Tensor:
    """One step of the probability-flow ODE: `x` (B, C, H, W) moved from `sigma` (B,) to `s` (B,), lower and above 0.

    Each sample has its own levels. `euler` is DDIM, and for flow Euler's method in t; `heun` adds the correction of
    `ldm.diffusion.heun`, at twice the cost.
    """
    denoised = denoise(x, sigma)
    moved = torch.lerp(denoised, x, broadcast(s / sigma, x))
    if solver == "euler":
        return moved
    weight = (1 + s) / (1 + sigma) * (sigma - s) / (2 * s)
    return moved + broadcast(weight, x) * (denoise(moved, s) - denoised)


def consistency_loss(
    student: DenoiseFn,
    average: DenoiseFn,
    base: DenoiseFn,
    x: Tensor,
    sigma: Tensor,
    s: Tensor,
    end: Tensor,
    *,
    solver: str = "euler",
    huber_c: float = 1e-3,
) -> Tensor:
    """The loss of each sample (B,) for `x` (B, C, H, W) at the noise level `sigma` (B,).

    `s` (B,) is the next level and `end` (B,) the end of the segment, end <= s < sigma. `base` is guided already.
    Gradients flow through `student` alone.

    The loss compares denoised images. The error of the jump itself is (1 - end / sigma) times theirs, and would hardly
    train the levels next to `end`, on which all levels above them depend.
    """
    with torch.no_grad():
        f = jump(average, ode_step(base, x, sigma, s=s, solver=solver), s, end)
        target = inverse_jump(f, x, sigma, end)
    # Torch 2.9's autocast keeps the weights that it converts above. A student that is its own average would use these
    # again, and they have no gradient.
    torch.clear_autocast_cache()
    return pseudo_huber(student(x, sigma) - target, huber_c)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c for d = `difference` (B, C, H, W), averaged over C, H, W: (B,).

    It is about |d| for large d, and smooth at 0 (Song and Dhariwal 2024).
    """
    square = difference.square()
    return (square / ((square + c**2).sqrt() + c)).flatten(1).mean(1)


def baked(
    denoiser: ConditionalDenoiseFn,
    cond: Any,
    null: Any,
    scale: Tensor,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """Classifier-free guidance, D_null + scale (D - D_null), where each sample has its own `scale` (B,).

    Noise levels may differ too. `interval` and `rescale` are those of `ldm.diffusion.guided`. It costs one call with
    the joined batch.
    """
    joined = cond.cat(null)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        """`x` (B, C, H, W) at `sigma` (B,) -> the guided x0 (B, C, H, W)."""
        conditional, without = denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), joined).chunk(2)
        weight = scale
        if interval is not None:
            weight = torch.where((sigma > interval[0]) & (sigma <= interval[1]), scale, 1.0)
        result = torch.lerp(without, conditional, broadcast(weight, x))
        return rescaled(result, conditional, x, sigma=sigma, phi=rescale) if rescale else result

    return denoise


def segment_levels(
    parameterization: Parameterization, levels: int, segments: int = 1, shift: float = 1.0, spacing: str | None = None
) -> tuple[Tensor, Tensor]:
    """Noise levels (levels + 1,) float32, falling from sigma_max to sigma_min, and where their segments end.

    The second tensor, (levels,) int64, has for each level but the last the index of the level that ends its segment.
    Segments end at the levels that a sampler with `segments` steps visits, the last one at sigma_min. Within a segment
    levels are evenly spaced in sigma / (1 + sigma), the time of rectified flow.
    """
    edges = torch.cat(
        [parameterization.grid(segments, spacing, shift)[:-1], torch.tensor([parameterization.sigma_min])]
    )
    t = edges / (1 + edges)  # (segments + 1,) float64
    each = levels // segments
    share = torch.arange(each, dtype=t.dtype, device=t.device) / each
    inner = torch.lerp(t[:-1, None], t[1:, None], share).flatten()  # (levels,)
    sigmas = torch.cat([inner / (1 - inner), edges[-1:]])
    sigmas[:levels:each] = edges[:-1]
    return sigmas.float(), (torch.arange(levels, device=t.device) // each + 1) * each


def check_solver(solver: str) -> str:
    """`solver` itself. Raises UserError unless it is one of SOLVERS."""
    if solver not in SOLVERS:
        raise UserError(f"solver={solver} is unknown.{did_you_mean(solver, SOLVERS)}")
    return solver
