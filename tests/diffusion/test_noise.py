import math

import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import (
    EDM,
    X0,
    Eps,
    Flow,
    LogitNormal,
    LogNormal,
    Schedule,
    UniformTimesteps,
    V,
    default_noise,
    resolution_shift,
)

U = torch.linspace(0, 1, 10_001, dtype=torch.float64)[1::2]  # the quantiles of 5,000 equal shares, all within (0, 1)


def test_every_timestep_is_equally_likely():
    schedule = Schedule(timesteps=50)
    u = (torch.arange(200) + 0.5) / 200
    sigma = UniformTimesteps().sigma(u, Eps(schedule))
    assert sigma.dtype == torch.float32
    torch.testing.assert_close(sigma, schedule.sigmas.float().repeat_interleave(4))


def test_flow_times_are_uniform_and_capped():
    u = torch.tensor([0.0001, 0.25, 0.5, 0.9995, 1.0])
    sigma = UniformTimesteps().sigma(u, Flow())
    torch.testing.assert_close(sigma, torch.tensor([1 / 999, 1 / 3, 1.0, 999.0, 999.0]), rtol=1e-5, atol=0)


def test_lognormal_quantiles():
    sigma = LogNormal(mean=-1.2, std=1.2).sigma(U, EDM(sigma_min=1e-6, sigma_max=1e6))
    assert (sigma.diff() > 0).all()
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=1e-6)
    assert sigma.log().std().item() == pytest.approx(1.2, rel=1e-3)
    normal = torch.distributions.Normal(*torch.tensor([-1.2, 1.2], dtype=torch.float64))
    torch.testing.assert_close(normal.cdf(sigma.log()), U, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_in_t_is_sd3s(shift):
    sigma = LogitNormal(mean=0.5, std=0.8, shift=shift).sigma(U, Flow())
    t = torch.special.expit(0.5 + 0.8 * math.sqrt(2) * torch.erfinv(2 * U - 1))
    torch.testing.assert_close(sigma / (1 + sigma), shift * t / (1 + (shift - 1) * t))


@pytest.mark.parametrize("make", [LogNormal, LogitNormal, UniformTimesteps])
def test_a_shift_keeps_the_signal_of_more_pixels(make):
    """Noise averaged over k x k places that say the same is k times weaker: at k times the noise as much is hidden."""
    k = resolution_shift(64 * 64, 32 * 32)
    assert k == 2
    flow, u = Flow(), U[100:-100]
    shifted, plain = make(shift=k).sigma(u, flow), make().sigma(u, flow)
    torch.testing.assert_close(shifted.clamp(max=100), (k * plain).clamp(max=100))
    t = plain / (1 + plain)
    torch.testing.assert_close(shifted / (1 + shifted), k * t / (1 + (k - 1) * t))  # SD3's eq. 23
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.avg_pool2d(k * noise, 2)
    assert coarse.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("parameterization", [Eps(), V(), X0(), Flow(), EDM()])
@pytest.mark.parametrize("noise", [LogNormal(), LogNormal(0, 50), LogitNormal(), UniformTimesteps()])
def test_noise_stays_within_the_parameterizations_range(parameterization, noise):
    if isinstance(parameterization, EDM) and isinstance(noise, UniformTimesteps):
        with pytest.raises(UserError, match="LogNormal"):
            noise.sigma(U, parameterization)
        return
    extremes = torch.tensor([0.0, 2**-25, 0.5, 1 - 2**-24, 1.0])  # a generator's rounding may reach the ends
    sigma = noise.sigma(extremes, parameterization).double()
    assert sigma.isfinite().all() and (sigma.diff() >= 0).all()
    assert sigma.min() >= parameterization.sigma_min * (1 - 1e-6)
    assert sigma.max() <= parameterization.sigma_max * (1 + 1e-6)


def test_the_default_noise_fits_every_parameterization():
    for parameterization in (Eps(), V(), X0(), Flow(), EDM()):
        assert default_noise(parameterization).sigma(U, parameterization).isfinite().all()


def test_settings_that_are_refused():
    with pytest.raises(UserError, match="std"):
        LogNormal(std=0.0)
    with pytest.raises(UserError, match="shift"):
        LogitNormal(shift=0.0)
