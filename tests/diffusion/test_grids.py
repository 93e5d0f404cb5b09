import itertools
import math

import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import EDM, X0, Eps, Flow, Schedule, V
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.quantiles import beta_quantile
from tests.diffusion.parameterizations import ALL, NAMES


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_grids_fall_from_sigma_max_to_zero(parameterization, shift):
    for spacing in set(parameterization.spacings) - {"leading", "table", "lcm"}:  # these begin where a table does
        for steps in (1, 2, 7, 30):
            sigmas = parameterization.grid(steps, spacing, shift)
            assert sigmas.shape == (steps + 1,) and sigmas.device.type == "cpu"
            assert sigmas[0].item() == parameterization.sigma_max and sigmas[-1] == 0
            assert (sigmas.diff() < 0).all()
    assert torch.equal(parameterization.grid(9), parameterization.grid(9, "uniform"))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("uniform", "trailing"), ("leading", "leading"), ("linspace", "linspace")]
)
@pytest.mark.parametrize("steps", [2, 7, 20, 30, 1000])
def test_variance_preserving_grids_are_diffusers(ours, theirs, steps, schedulers):
    scheduler = schedulers("DDIMScheduler", timestep_spacing=theirs)
    scheduler.set_timesteps(steps)
    schedule = Schedule()
    torch.testing.assert_close(
        Eps(schedule).grid(steps, ours)[:-1], schedule.sigma(scheduler.timesteps), rtol=1e-12, atol=0
    )


def test_the_whole_table_is_a_grid():
    schedule = Schedule(timesteps=50)
    sigmas = Eps(schedule).grid(50, "table")
    assert torch.equal(sigmas[:-1], schedule.sigmas.flip(0))
    torch.testing.assert_close(Eps(schedule).grid(50, "uniform"), sigmas, rtol=1e-12, atol=0)
    with pytest.raises(UserError, match="steps=50"):
        Eps(schedule).grid(20, "table")


def test_karras_is_the_papers():
    sigmas = EDM().grid(18)
    i = torch.arange(18, dtype=torch.float64) / 17
    torch.testing.assert_close(sigmas[:-1], (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert torch.equal(sigmas, EDM().grid(18, "karras"))


def test_flow_grids_are_uniform_in_t_and_shift_as_sd3(schedulers):
    sigmas = Flow().grid(20)
    t = sigmas / (1 + sigmas)
    torch.testing.assert_close(t[1:], torch.linspace(1, 0, 21, dtype=torch.float64)[1:], rtol=0, atol=1e-12)
    assert t[0].item() == pytest.approx(0.999)
    shifted = Flow().grid(20, shift=3.0)
    torch.testing.assert_close(shifted[1:], 3 * sigmas[1:])
    theirs = schedulers("FlowMatchEulerDiscreteScheduler", shift=3.0)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 20, 20, dtype=torch.float64).tolist())
    torch.testing.assert_close((shifted / (1 + shifted))[1:], theirs.sigmas[1:].double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("a", [0.6, 1.0, 2.5])
def test_beta_quantiles_are_scipys(a):
    stats = pytest.importorskip("scipy.stats")
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = torch.from_numpy(stats.beta.ppf(u.numpy(), a, 0.6))
    torch.testing.assert_close(beta_quantile(u, a, 0.6), expected, rtol=0, atol=2e-7)


def test_beta_grids_stand_at_quantiles_of_the_models_own_time():
    u = 1 - torch.arange(12).double() / 12
    tau = beta_quantile(u, 0.6, 0.6)
    eps, flow = Eps().grid(12, "beta")[:-1], Flow().grid(12, "beta")[:-1]
    torch.testing.assert_close(Eps().schedule.timestep(eps), 999 * tau)
    torch.testing.assert_close(flow / (1 + flow), 0.001 + 0.998 * tau)
    assert (tau.diff()[[0, -1]].abs() < 0.7 * tau.diff()[6].abs()).all()  # dense at both ends


@pytest.mark.parametrize(("spacing", "even"), [("exponential", torch.log), ("kl_optimal", torch.atan)])
@pytest.mark.parametrize("parameterization", [Eps(), Flow(), EDM()])
def test_grids_that_are_even_in_a_function_of_sigma(spacing, even, parameterization):
    sigmas = parameterization.grid(20, spacing)[:-1]
    torch.testing.assert_close(even(sigmas).diff(2), torch.zeros(18, dtype=torch.float64), rtol=0, atol=1e-9)
    assert sigmas[0].item() == parameterization.sigma_max
    assert sigmas[-1].item() == pytest.approx(parameterization.sigma_min)


@pytest.mark.parametrize("parameterization", [Eps(), V(Schedule(zero_terminal_snr=True)), X0(), Flow(), EDM()])
@pytest.mark.parametrize("spacing", Parameterization.spacings)
@pytest.mark.parametrize("shift", [1.0, 0.5, 3.0])
def test_every_spacing_falls_from_the_most_noise_to_0(parameterization, spacing, shift):
    for steps in (1, 2, 100):
        sigmas = parameterization.grid(steps, spacing, shift)
        assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()
        assert sigmas[0].item() == parameterization.sigma_max and sigmas[-1] == 0


@pytest.mark.parametrize("parameterization", [Eps(), V(Schedule(zero_terminal_snr=True)), X0(Schedule("cosine"))])
@pytest.mark.parametrize("spacing", ["uniform", "beta"])
def test_a_whole_number_of_steps_is_the_grids_end(parameterization, spacing):
    whole = parameterization.grid(20, spacing)
    for n in (1, 13, 16, 19, 20):
        part = parameterization.grid(20, spacing, strength=n / 20)
        torch.testing.assert_close(part, whole[20 - n :], rtol=1e-9, atol=0)


@pytest.mark.parametrize("parameterization", [Eps(), Flow(), EDM(), V(Schedule(zero_terminal_snr=True))])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_part_begins_at_its_own_noise_level_whatever_the_steps(parameterization, shift):
    """It rises with the strength and is the same for one step and for many; nothing is left at strength 0."""
    zero_snr = parameterization.sigma_max > 1000
    for spacing in parameterization.spacings:
        if spacing == "table" or (spacing in ("leading", "lcm") and (zero_snr or shift != 1)):
            continue
        started = []
        for strength in (0.04, 0.1, 0.4, 0.78, 0.79, 0.8, 0.805, 0.82, 0.999):
            grids = [parameterization.grid(steps, spacing, shift, strength) for steps in (1, 2, 5, 20)]
            assert [len(grid) - 1 for grid in grids] == [math.ceil(strength * steps) for steps in (1, 2, 5, 20)]
            if spacing != "leading":  # whose whole way depends on the steps
                assert all(grid[0].item() == pytest.approx(grids[0][0].item(), rel=1e-9) for grid in grids)
            started.append(grids[-1][0].item())
        assert parameterization.sigma_min <= started[0] and started[-1] <= parameterization.sigma_max
        assert all(low < high for low, high in itertools.pairwise(started)), spacing
        assert parameterization.grid(20, spacing, shift, 0.0).tolist() == [0]


def test_a_part_of_a_flows_way_begins_at_t_its_strength():
    sigmas = Flow().grid(20, strength=0.785)
    t = sigmas / (1 + sigmas)
    torch.testing.assert_close(t, 0.785 * torch.linspace(1, 0, 17, dtype=torch.float64))


def test_a_part_of_the_table_takes_its_share_of_the_timesteps():
    parameterization = Eps(Schedule(timesteps=50))
    sigmas = parameterization.grid(50, "table", strength=0.5)
    assert torch.allclose(sigmas, parameterization.grid(50, "table")[25:])
    assert len(parameterization.grid(50, "table", strength=0.51)) == 27


def test_grids_that_are_refused():
    with pytest.raises(UserError, match="Flow has no spacing 'table'.*karras.*uniform"):
        Flow().grid(10, "table")
    with pytest.raises(UserError, match="Did you mean 'karras'"):
        EDM().grid(10, "karas")
    with pytest.raises(UserError, match="at least one step"):
        EDM().grid(0)
    with pytest.raises(UserError, match="can't be shifted"):
        Eps().grid(10, "leading", 2.0)
    with pytest.raises(UserError, match="from its last timestep"):
        V(Schedule(zero_terminal_snr=True)).grid(10, "leading")
    for parameterization, steps in ((Eps(), 1001), (Flow(), 1500)):
        with pytest.raises(UserError, match="use fewer"):
            parameterization.grid(steps)
