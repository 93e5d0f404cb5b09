import copy
import math

import pytest
import torch

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.diffusion import Eps, Schedule, V

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def reference(schedulers, kind, ends=(0.00085, 0.012), **config):
    return schedulers("DDPMScheduler", beta_schedule=KINDS[kind], beta_start=ends[0], beta_end=ends[1], **config)


@pytest.mark.parametrize("kind", KINDS)
def test_betas_are_diffusers(kind, schedulers):
    ends = (None, None) if kind == "cosine" else (0.0015, 0.0205)
    theirs = reference(schedulers, kind, (0.0015, 0.0205))
    ours = Schedule(kind, *ends)
    assert ours.betas.dtype == ours.alphas_cumprod.dtype == ours.sigmas.dtype == torch.float64
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_images_are_diffusers(kind, schedulers):
    ends = (None, None) if kind == "cosine" else (0.00085, 0.012)
    schedule, theirs = Schedule(kind, *ends), reference(schedulers, kind)
    t = torch.tensor([0, 1, 333, 998, 999])
    x0, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    sigma = schedule.sigma(t).view(-1, 1, 1, 1)
    x = (x0 + sigma * noise) / (1 + sigma**2).sqrt()
    torch.testing.assert_close(x, theirs.add_noise(x0, noise, t), rtol=0, atol=1e-10)


def test_the_published_constants():
    ddpm, sd = Schedule("linear"), Schedule()
    assert (ddpm.betas[0].item(), ddpm.betas[-1].item()) == pytest.approx((1e-4, 0.02))
    assert (sd.betas[0].item(), sd.betas[-1].item()) == pytest.approx((0.00085, 0.012))
    assert sd.sigmas[0].item() == pytest.approx(
        0.029167, abs=1e-6
    )  # Stable Diffusion's range, as k-diffusion prints it
    assert sd.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-4)
    abar = Schedule("cosine").alphas_cumprod
    closed = torch.cos((torch.tensor([500.0]) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    assert abar[499].item() == pytest.approx(closed.item() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timesteps", [50, 1000, 4000])
@pytest.mark.parametrize("zero", [False, True])
def test_sigma_rises_strictly_and_round_trips(kind, timesteps, zero):
    schedule = Schedule(kind, timesteps=timesteps, zero_terminal_snr=zero)
    assert schedule.sigmas.isfinite().all() and (schedule.sigmas.diff() > 0).all() and schedule.sigmas[0] > 0
    t = torch.linspace(0, timesteps - 1, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.timestep(schedule.sigma(t)), t, rtol=0, atol=1e-8)
    whole = torch.arange(timesteps)
    torch.testing.assert_close(schedule.sigma(whole), schedule.sigmas, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.timestep(schedule.sigmas), whole.double(), rtol=0, atol=1e-8)


def test_timesteps_are_linear_in_ln_sigma_and_clamped():
    schedule = Schedule()
    between = (schedule.sigmas[10] * schedule.sigmas[11]).sqrt()
    sigma = torch.stack([between, schedule.sigmas[-1] * 9, schedule.sigmas[0] / 9, torch.zeros_like(between)])
    torch.testing.assert_close(schedule.timestep(sigma), torch.tensor([10.5, 999, 0, 0], dtype=torch.float64))
    ends = schedule.sigma(torch.tensor([-3.0, 5000.0]))
    assert ends.dtype == torch.float32
    torch.testing.assert_close(ends, schedule.sigmas[[0, -1]].float())


def test_float32_timesteps_are_within_a_ten_thousandth():
    schedule = Schedule()
    t = schedule.timestep(schedule.sigmas.float())
    assert t.dtype == torch.float32
    assert (t - torch.arange(1000)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_is_diffusers_but_for_the_last_step(kind, schedulers):
    ends = (None, None) if kind == "cosine" else (0.00085, 0.012)
    theirs = reference(schedulers, kind, rescale_betas_zero_snr=True).alphas_cumprod
    ours = Schedule(kind, *ends, zero_terminal_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod[:-1], theirs[:-1], rtol=1e-8, atol=0)
    assert theirs[-1] == 0 and 0 < ours.alphas_cumprod[-1] <= 4.8973e-8
    assert ours.sigmas[-1] >= 4518 and ours.sigmas[-1] >= 1.999 * ours.sigmas[-2]
    torch.testing.assert_close(torch.cumprod(1 - ours.betas, 0), ours.alphas_cumprod, rtol=1e-7, atol=0)


def test_zero_terminal_snr_refuses_eps():
    with pytest.raises(UserError, match="V or X0"):
        Eps(Schedule(zero_terminal_snr=True))


@pytest.mark.parametrize(("kind", "fewest"), [("linear", 21), ("scaled_linear", 13)])
def test_few_timesteps_scale_the_default_ends(kind, fewest):
    many, few = Schedule(kind), Schedule(kind, timesteps=100)
    assert few.betas[0].item() == pytest.approx(10 * many.betas[0].item())
    assert few.sigmas[-1].log().item() == pytest.approx(many.sigmas[-1].log().item(), rel=0.2)  # about as noisy
    assert Schedule(kind, timesteps=fewest).betas.max() < 1
    with pytest.raises(UserError, match="more timesteps"):
        Schedule(kind, timesteps=fewest - 1)
    assert Schedule(kind, 0.001, 0.2, timesteps=100).betas[-1].item() == pytest.approx(0.2)  # given ends are kept


def test_what_is_refused():
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        Schedule("cosin")
    with pytest.raises(UserError, match="no beta_start"):
        Schedule("cosine", beta_start=0.1)
    with pytest.raises(UserError, match="rise within"):
        Schedule("linear", 0.02, 0.0001)
    with pytest.raises(UserError, match="at least 2"):
        Schedule(timesteps=1)


def test_a_schedule_is_rebuilt_from_its_spec_and_copied():
    schedule = Schedule("linear", timesteps=200, zero_terminal_snr=True)
    spec = spec_of(V(schedule))
    assert spec == {
        "class": "V",
        "schedule": {"class": "Schedule", "kind": "linear", "timesteps": 200, "zero_terminal_snr": True},
    }
    assert torch.equal(build(spec).schedule.sigmas, schedule.sigmas)
    assert torch.equal(copy.deepcopy(schedule).sigma(torch.arange(3)), schedule.sigma(torch.arange(3)))


def test_the_table_is_real_under_a_meta_default_device():
    with torch.device("meta"):
        sigmas = V().grid(5)
    assert torch.equal(sigmas, V().grid(5))
