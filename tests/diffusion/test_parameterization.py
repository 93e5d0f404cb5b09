import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import EDM, X0, Eps, Flow, Schedule, V
from tests.diffusion.parameterizations import ALL, NAMES


def draws(parameterization, n=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, n, 2, 4, 4, dtype=torch.float64, generator=generator)
    ends = torch.tensor([parameterization.sigma_min, parameterization.sigma_max], dtype=torch.float64).log()
    sigma = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=torch.float64)).exp()
    return x0.to(dtype), noise.to(dtype), sigma.to(dtype)


def over(c):
    return c.view(-1, 1, 1, 1)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
def test_the_target_denoises(parameterization):
    x0, noise, sigma = draws(parameterization)
    c = parameterization.coefficients(sigma)
    denoised = over(c.c_skip) * (x0 + over(sigma) * noise) + over(c.c_out) * parameterization.target(x0, noise, sigma)
    torch.testing.assert_close(denoised, x0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
def test_float32_targets_and_coefficients_are_exact(parameterization):
    """The reason for `target`: (x0 - c_skip x) / c_out cancels, by 1e-2 at the ends of these ranges."""
    x0, noise, sigma = draws(parameterization, dtype=torch.float32)
    target = parameterization.target(x0, noise, sigma)
    exact = parameterization.target(x0.double(), noise.double(), sigma.double())
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.double(), exact, rtol=0, atol=1e-6)
    pairs = zip(parameterization.coefficients(sigma), parameterization.coefficients(sigma.double()), strict=True)
    for ours, wide in pairs:
        assert ours.dtype == torch.float32 and ours.shape == sigma.shape
        torch.testing.assert_close(ours.double(), wide, rtol=3e-7, atol=1e-4 if ours.max() > 100 else 1e-9)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule("linear"), Schedule("cosine")])
def test_eps_x0_and_v_are_diffusers(schedule, schedulers):
    theirs = schedulers("DDPMScheduler")
    theirs.alphas_cumprod = schedule.alphas_cumprod
    t = torch.tensor([0, 10, 500, 999])
    x0, noise = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    sigma = schedule.sigma(t)
    alpha, s = schedule.alphas_cumprod[t].sqrt(), (1 - schedule.alphas_cumprod[t]).sqrt()
    assert Eps(schedule).target(x0, noise, sigma) is noise
    assert X0(schedule).target(x0, noise, sigma) is x0
    v = V(schedule).target(x0, noise, sigma)
    torch.testing.assert_close(v, over(alpha) * noise - over(s) * x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(v, theirs.get_velocity(x0, noise, t), rtol=0, atol=1e-10)
    for kind in (Eps, X0, V):
        c = kind(schedule).coefficients(sigma)
        x_t = over(c.c_in) * (x0 + over(sigma) * noise)
        torch.testing.assert_close(x_t, theirs.add_noise(x0, noise, t), rtol=0, atol=1e-10)
        torch.testing.assert_close(c.c_noise, t.double(), rtol=0, atol=1e-9)


def test_flow_is_the_straight_line():
    x0, noise = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.001, 0.3, 0.5, 0.999], dtype=torch.float64)
    sigma = t / (1 - t)
    c = Flow().coefficients(sigma)
    z_t = torch.lerp(x0, noise, over(t))
    torch.testing.assert_close(over(c.c_in) * (x0 + over(sigma) * noise), z_t, rtol=0, atol=1e-12)
    torch.testing.assert_close(c.c_noise, 1000 * t)
    assert torch.equal(Flow().target(x0, noise, sigma), noise - x0)
    velocity = noise - x0
    x = x0 + over(sigma) * noise
    torch.testing.assert_close(
        over(c.c_skip) * x + over(c.c_out) * velocity, z_t - over(t) * velocity, rtol=0, atol=1e-12
    )


def test_edm_is_table_1_of_the_paper():
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    d = 0.5
    c = EDM(sigma_data=d).coefficients(sigma)
    torch.testing.assert_close(c.c_skip, d**2 / (sigma**2 + d**2))
    torch.testing.assert_close(c.c_out, sigma * d / (sigma**2 + d**2).sqrt())
    torch.testing.assert_close(c.c_in, 1 / (sigma**2 + d**2).sqrt())
    torch.testing.assert_close(c.c_noise, sigma.log() / 4)
    x0, noise = d * torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    target = EDM(sigma_data=d).target(x0, noise / d, sigma)
    assert target.std((1, 2, 3)).sub(1).abs().max() < 0.05  # unit variance, whatever sigma
    x = over(c.c_in) * (x0 + over(sigma) * noise / d)
    assert x.std((1, 2, 3)).sub(1).abs().max() < 0.05


def test_ranges_that_are_refused():
    with pytest.raises(UserError, match="t_max"):
        Flow(t_max=1.0)
    with pytest.raises(UserError, match="sigma_min"):
        EDM(sigma_min=0.0)
