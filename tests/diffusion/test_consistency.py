"""Consistency distillation on Gaussian data, whose denoiser, trajectories and consistency function are known.

For data N(0, S^2): D(x, sigma) = x S^2 / (S^2 + sigma^2), and a trajectory keeps x / sqrt(S^2 + sigma^2).
"""

from types import SimpleNamespace

import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import EDM, X0, Eps, Flow, V, classifier_free, guided, lcm
from ldm.diffusion.consistency import baked, consistency_loss, inverse_jump, jump, ode_step, segment_levels

S = 0.6
PARAMETERIZATIONS = [Eps(), V(), X0(), Flow(), EDM()]


def shaped(c: torch.Tensor) -> torch.Tensor:
    return c.view(-1, 1, 1, 1)


def posterior_mean(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x * S**2 / (S**2 + shaped(sigma) ** 2)


def moved(x: torch.Tensor, sigma: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
    """x at s on the trajectory through x at sigma."""
    s = torch.as_tensor(s, dtype=x.dtype).expand(len(x))
    return x * ((S**2 + shaped(s) ** 2) / (S**2 + shaped(sigma) ** 2)).sqrt()


def at_level(grid: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sigma = grid[i]
    torch.manual_seed(0)
    return torch.randn(len(i), 1, 4, 4, dtype=grid.dtype) * shaped((S**2 + sigma**2).sqrt()), sigma


def exact_loss(segments: int, levels: int, solver: str) -> tuple[float, float]:
    """The losses of the exact student and of the base itself, over all levels."""
    grid, ends = segment_levels(Flow(), levels, segments)
    grid, i = grid.double(), torch.arange(levels)
    x, sigma = at_level(grid, i)
    s, end = grid[i + 1], grid[ends]

    def student(x, sigma):
        return inverse_jump(moved(x, sigma, end), x, sigma, end)

    def average(x, s):
        inside = shaped(s > end)
        safe = torch.where(s > end, end, s / 2)  # at a segment's end, where every D gives x
        return torch.where(inside, inverse_jump(moved(x, s, safe), x, s, safe), torch.zeros_like(x))

    options = {"solver": solver}
    exact = consistency_loss(student, average, posterior_mean, x, sigma, s, end, **options).mean()
    itself = consistency_loss(posterior_mean, average, posterior_mean, x, sigma, s, end, **options).mean()
    return exact.item(), itself.item()


@pytest.mark.parametrize("segments", [1, 4])
def test_the_exact_consistency_function_has_no_loss_but_the_solvers_error(segments):
    errors = {levels: exact_loss(segments, levels, "heun") for levels in (64, 256)}
    assert errors[256][0] < 2e-3 and errors[64][0] / errors[256][0] > 3
    assert errors[256][1] > 5 * errors[256][0]  # while the base, which doesn't jump, has one
    assert exact_loss(segments, 256, "heun")[0] < exact_loss(segments, 256, "euler")[0]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_at_its_end_a_jump_is_where_it_is_whatever_the_network_says(parameterization):
    x, end = torch.randn(3, 2, 4, 4), torch.full((3,), parameterization.sigma_min)
    assert torch.equal(jump(lambda x, sigma: 7 - 3 * x, x, end, end), x)


def test_the_wanted_denoised_image_makes_the_jump():
    x, f = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    sigma, end = torch.tensor([3.0, 0.5]).double(), torch.tensor([0.4, 0.1]).double()
    torch.testing.assert_close(jump(lambda *_: inverse_jump(f, x, sigma, end), x, sigma, end), f)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_step_of_the_ode_is_of_its_order(solver):
    x, sigma = torch.randn(64, 1, 2, 2, dtype=torch.float64), torch.full((64,), 1.0, dtype=torch.float64)

    def error(h: float) -> float:
        s = sigma - h
        return (ode_step(posterior_mean, x, sigma, s, solver) - moved(x, sigma, s)).abs().mean().item()

    order = {"euler": 2, "heun": 3}[solver]  # of one step
    assert error(0.02) / error(0.01) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lcm_on_the_exact_consistency_function_has_the_datas_spread(steps):
    torch.manual_seed(0)
    sigmas = Flow().grid(steps)
    x = torch.randn(1000, 1, 8, 8) * sigmas[0].item()
    assert lcm(lambda x, sigma: moved(x, sigma, 0.0), x, sigmas).std().item() == pytest.approx(S, rel=0.02)
    blurred = lcm(posterior_mean, x, sigmas).std().item()
    assert blurred < 0.7 * S  # which a denoiser that doesn't jump hasn't


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("segments", [1, 4])
def test_segments_end_where_the_sampler_stops(parameterization, segments):
    spacing = "beta" if isinstance(parameterization, EDM) else None
    grid, ends = segment_levels(parameterization, 20, segments, spacing=spacing)
    assert len(grid) == 21 and (grid.diff() < 0).all()
    stops = parameterization.grid(segments, spacing)[1:-1].float()
    torch.testing.assert_close(grid[ends.unique()], torch.cat([stops, torch.tensor([parameterization.sigma_min])]))
    assert grid[0] == pytest.approx(parameterization.sigma_max)
    assert (ends > torch.arange(20)).all()


def test_each_sample_has_its_own_guidance_scale_and_level():
    class Told(SimpleNamespace):
        def cat(self, other):
            return Told(value=torch.cat([self.value, other.value]))

    cond, null = Told(value=torch.full((3,), 1.0)), Told(value=torch.zeros(3))

    def denoiser(x, sigma, cond):
        return x * shaped(cond.value + 0.1) / (1 + shaped(sigma))

    x, sigma = torch.randn(3, 2, 4, 4), torch.tensor([3.0, 1.0, 0.3])
    scale = torch.tensor([1.0, 2.0, 5.0])
    for rescale in (0.0, 0.7):
        got = baked(denoiser, cond, null, scale, rescale=rescale, interval=(0.5, 9.0))(x, sigma)
        for i, weight in enumerate([1.0, 2.0, 1.0]):  # the last lies outside of the interval
            row = slice(i, i + 1)
            one, none = Told(value=cond.value[row]), Told(value=null.value[row])
            alone = guided(denoiser, classifier_free(one, none, weight), rescale=rescale)(x[row], sigma[row])
            torch.testing.assert_close(got[row], alone)


def test_an_unknown_solver_is_refused():
    from ldm.diffusion.consistency import check_solver

    with pytest.raises(UserError, match="solver=hein is unknown. Did you mean 'heun'"):
        check_solver("hein")


def test_a_student_that_is_its_own_average_has_gradients_under_autocast():
    """Torch 2.9's autocast keeps weights that were converted without gradients (the oldest torch that is supported)."""
    layer, x, levels = torch.nn.Conv2d(1, 1, 1), torch.randn(2, 1, 4, 4), torch.tensor([[0.8, 0.5], [0.4, 0.2]])

    def student(x, sigma):
        return layer(x).float()

    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = consistency_loss(student, student, posterior_mean, x, levels[0], s=levels[1], end=levels[1] / 2)
        gradients.append(torch.stack([g.flatten() for g in torch.autograd.grad(loss.sum(), layer.parameters())]))
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.02)
