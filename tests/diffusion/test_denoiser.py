import copy

import pytest
import torch
from torch import nn

from ldm.common.errors import UserError
from ldm.diffusion import EDM, X0, Denoiser, Eps, Flow, LogNormal, MinSNR, Schedule, UniformTimesteps, V

ALL = [Eps(), X0(), V(), V(Schedule("cosine", zero_terminal_snr=True)), Flow(), EDM()]


def draws(n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, n, 3, 4, 4, dtype=dtype, generator=generator)
    return x0, noise, torch.linspace(0.05, 10, n, dtype=dtype)


class Oracle(nn.Module):
    """A network that knows the answer."""

    answer = None

    def forward(self, x, c_noise, cond):
        return self.answer


@pytest.mark.parametrize("parameterization", ALL)
def test_a_perfect_network_denoises_without_loss(parameterization):
    x0, noise, sigma = draws()
    denoiser = Denoiser(Oracle(), parameterization)
    denoiser.network.answer = parameterization.target(x0, noise, sigma)
    x = x0 + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(denoiser(x, sigma), x0, rtol=0, atol=1e-11)
    assert torch.equal(denoiser.loss(x0, noise, sigma), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("prediction", "parameterization"), [("epsilon", Eps), ("sample", X0), ("v_prediction", V)])
def test_the_loss_is_that_of_a_diffusers_training_loop(kind, prediction, parameterization, schedulers, recorder):
    theirs = schedulers("DDPMScheduler", beta_schedule=kind, beta_start=0.00085, beta_end=0.012)
    ends = {} if kind.startswith("sq") else {"beta_start": 0.00085, "beta_end": 0.012}
    schedule = Schedule("cosine" if kind.startswith("sq") else kind, **ends)
    x0, noise, _ = draws()
    t = torch.tensor([0, 7, 400, 998, 999])
    net = recorder()
    target = {"epsilon": noise, "sample": x0, "v_prediction": theirs.get_velocity(x0, noise, t)}[prediction]
    expected = (net(theirs.add_noise(x0, noise, t), t) - target).square().mean((1, 2, 3))
    loss = Denoiser(net, parameterization(schedule)).loss(x0, noise, schedule.sigma(t))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)


def test_the_network_sees_scaled_noise_its_level_and_the_condition(recorder):
    x0, noise, sigma = draws()
    seen = []
    denoiser = Denoiser(lambda x, t, cond: seen.append((x, t, cond)) or x, V())
    x = x0 + sigma.view(-1, 1, 1, 1) * noise
    denoiser(x, sigma, "cond")
    (scaled, t, cond), c = seen[0], V().coefficients(sigma)
    torch.testing.assert_close(scaled, x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1))
    assert torch.equal(t, c.c_noise) and cond == "cond"


def test_losses_and_weights():
    x0, noise, sigma = draws()
    error = torch.tensor([-2.0, -1e-3, 0.0, 0.5], dtype=torch.float64).repeat(5, 3, 4, 1)
    c = 0.1
    expected = {
        "mse": error**2,
        "l1": error.abs(),
        "huber": 2 * c * ((error**2 + c**2).sqrt() - c),
    }
    for loss, value in expected.items():
        denoiser = Denoiser(Oracle(), Flow(), loss=loss, huber_c=c, weighting=MinSNR(zero_terminal=False))
        denoiser.network.answer = noise - x0 + error
        weight = MinSNR().weight(sigma, Flow().coefficients(sigma))
        torch.testing.assert_close(denoiser.loss(x0, noise, sigma), weight * value.mean((1, 2, 3)))


def test_pseudo_huber_keeps_its_digits_in_float32():
    x0, noise, sigma = draws(dtype=torch.float32)
    denoiser = Denoiser(Oracle(), Eps(), loss="huber", huber_c=1.0)
    denoiser.network.answer = torch.full_like(noise, 1e-4)
    loss = denoiser.loss(x0, torch.zeros_like(noise), sigma)
    torch.testing.assert_close(loss, torch.full((5,), 1e-8), rtol=1e-5, atol=0)


def test_autocast_reaches_the_network_alone():
    """A bfloat16 (x - D) / sigma is off by 0.4 at sigma 0.01: everything but the network's inside is float32."""
    torch.manual_seed(0)
    x0, noise, _ = draws(dtype=torch.float32)
    sigma = torch.tensor([0.002, 0.01, 1.0, 100.0, 900.0])
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, c_noise, cond):
            seen.append((x.dtype, c_noise.dtype))
            return self.conv(x)

    network = Network()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x0, sigma, None).dtype == torch.bfloat16
    for parameterization in (Eps(), V(), Flow(), EDM()):
        denoiser = Denoiser(network, parameterization)
        with torch.autocast("cpu", torch.bfloat16):
            denoised, loss = denoiser(x0, sigma), denoiser.loss(x0, noise, sigma)
            half = denoiser(x0.bfloat16(), sigma)
        assert {denoised.dtype, loss.dtype, half.dtype} == {torch.float32}
        torch.testing.assert_close(loss, denoiser.loss(x0, noise, sigma), rtol=0.02, atol=0)
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("t", [0.99, 0.999])
def test_float32_flow_is_stable_near_pure_noise(t):
    x0, noise, _ = draws()
    sigma = torch.full((5,), t / (1 - t), dtype=torch.float64)
    net = nn.Conv2d(3, 3, 1).double()
    exact = Denoiser(lambda x, t, cond: net(x), Flow()).loss(x0, noise, sigma)
    net32 = copy.deepcopy(net).float()
    loss = Denoiser(lambda x, t, cond: net32(x), Flow()).loss(x0.float(), noise.float(), sigma.float())
    torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=0)


def test_gradients_reach_the_network_only_and_state_is_the_networks():
    x0, noise, sigma = draws(dtype=torch.float32)
    net = nn.Conv2d(3, 3, 1)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = net

        def forward(self, x, c_noise, cond):
            return self.conv(x)

    denoiser = Denoiser(Network(), Eps())
    denoiser.loss(x0, noise, sigma).mean().backward()
    assert net.weight.grad.abs().sum() > 0
    assert list(denoiser.state_dict()) == ["network.conv.weight", "network.conv.bias"]
    assert torch.equal(copy.deepcopy(denoiser)(x0, sigma), denoiser(x0, sigma))


def test_defaults_and_refusals():
    assert isinstance(Denoiser(Oracle(), EDM()).noise, LogNormal)
    assert isinstance(Denoiser(Oracle(), V()).noise, UniformTimesteps)
    with pytest.raises(UserError, match="Did you mean 'huber'"):
        Denoiser(Oracle(), V(), loss="hubber")
    with pytest.raises(UserError, match="huber_c"):
        Denoiser(Oracle(), V(), loss="huber", huber_c=0.0)


def test_a_base_is_only_another_origin() -> None:
    """D(x; b) = b + D(x - b; 0), and the loss is that of the difference."""
    from ldm.networks import Cond

    torch.manual_seed(0)
    denoiser = Denoiser(lambda x, t, cond: x.tanh() * t.view(-1, 1, 1, 1), EDM())
    x0, noise, base = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.5, 3.0], dtype=torch.float64)
    moved = denoiser(x0 + base, sigma, Cond(base=base))
    torch.testing.assert_close(moved, base + denoiser(x0, sigma, Cond()))
    loss = denoiser.loss(x0 + base, noise, sigma, Cond(base=base))
    torch.testing.assert_close(loss, denoiser.loss(x0, noise, sigma, Cond()))
