import pytest
import torch

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.diffusion import EDM, X0, Denoiser, Eps, Flow, LearnedUncertainty, MinSNR, Schedule, Uniform, V

SIGMA = torch.tensor([0.03, 0.2, 0.447, 0.45, 1.0, 3.0, 14.0], dtype=torch.float64)
S, G = SIGMA**-2, 5.0
CLOSED_FORMS = [
    (Eps(), (G / S).clamp(max=1)),
    (X0(), S.clamp(max=G)),
    (V(), S.clamp(max=G) / (S + 1)),
    (Flow(), S.clamp(max=G) / (1 + S.sqrt()) ** 2),
    (EDM(), S.clamp(max=G) / (1 + S)),
    (EDM(sigma_data=0.5), 0.25 * S.clamp(max=G) / (1 + 0.25 * S)),
]


@pytest.mark.parametrize(("parameterization", "expected"), CLOSED_FORMS)
def test_min_snr_closed_forms(parameterization, expected):
    weight = MinSNR(gamma=G).weight(SIGMA, parameterization.coefficients(SIGMA))
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


def test_zero_terminal_min_snr_trains_pure_noise():
    parameterization = V(Schedule("linear", zero_terminal_snr=True))
    sigma = torch.tensor([0.02, 0.45, 0.6, parameterization.sigma_max], dtype=torch.float64)
    c = parameterization.coefficients(sigma)
    snr = sigma**-2
    weight = MinSNR(G, zero_terminal=True).weight(sigma, c)
    torch.testing.assert_close(weight, (snr + 1).clamp(max=G) / (snr + 1))
    assert weight[-1].item() == pytest.approx(1) and MinSNR(G).weight(sigma, c)[-1] < 1e-6


PURE = [V(Schedule("linear", zero_terminal_snr=True)), X0(Schedule(zero_terminal_snr=True)), Flow()]
PURE += [V(Schedule("cosine")), X0(Schedule("cosine"))]


@pytest.mark.parametrize("wrapped", [False, True])
def test_by_default_no_weighting_leaves_out_the_noise_where_sampling_starts(wrapped):
    """Published min-SNR weights of 5e-8 at a zero-terminal schedule's end, unless requested by name."""

    def weights(parameterization, **options):
        weighting = MinSNR(**options)
        used = LearnedUncertainty(base=weighting) if wrapped else weighting
        denoiser = Denoiser(torch.nn.Identity(), parameterization, weighting=used)
        sigma = torch.tensor([0.1, 1.0, parameterization.sigma_max], dtype=torch.float64)
        return denoiser.weighting.weight(sigma, parameterization.coefficients(sigma)).detach()

    for parameterization in PURE:
        assert weights(parameterization)[-1] > 0.5
        assert weights(parameterization, zero_terminal=False)[-1] < 2e-6
    for parameterization in (V(), Eps(), EDM()):  # these end at sigma 14.6 and 80: as published
        assert torch.equal(weights(parameterization), weights(parameterization, zero_terminal=False))
    assert spec_of(MinSNR()) == {"class": "MinSNR"}  # what is saved doesn't depend on the denoiser


def test_uniform_is_one_and_gamma_is_checked():
    assert torch.equal(Uniform().weight(SIGMA, Eps().coefficients(SIGMA)), torch.ones(7, dtype=torch.float64))
    with pytest.raises(UserError, match="gamma"):
        MinSNR(gamma=0.0)


def test_learned_uncertainty_finds_ln_of_the_loss():
    """The minimum of loss / e^u + u is u = ln loss, at each sigma by itself."""
    torch.manual_seed(0)
    weighting = LearnedUncertainty()
    sigma = torch.linspace(-3, 3, 64).exp()
    loss = 0.02 + sigma.square() / (1 + sigma.square())  # from 0.02 to 1
    c = EDM().coefficients(sigma)
    torch.testing.assert_close(weighting.weighted(loss, sigma, c), loss)  # u is 0 at first
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 600)
        optimizer.zero_grad()
        weighting.weighted(loss, sigma, c).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weighting.u(sigma), loss.log(), rtol=0, atol=0.05)
    torch.testing.assert_close(weighting.weight(sigma, c) * loss, torch.ones(64), rtol=0, atol=0.05)
    assert (weighting.weighted(loss, sigma, c) - (1 + loss.log())).abs().max() < 2e-3  # what is left at the minimum


def test_learned_uncertainty_multiplies_its_base_and_trains_with_the_network():
    torch.manual_seed(0)
    weighting = LearnedUncertainty(features=16, base=MinSNR(2.0))
    torch.nn.init.normal_(weighting.slope)
    sigma, parameterization = SIGMA.float(), Flow()
    c = parameterization.coefficients(sigma)
    loss, u = torch.rand(7), weighting.u(sigma)
    torch.testing.assert_close(weighting.weighted(loss, sigma, c), MinSNR(2.0).weight(sigma, c) * loss / u.exp() + u)
    network = torch.nn.Conv2d(3, 3, 1)
    denoiser = Denoiser(lambda x, c_noise, cond: network(x), parameterization, weighting=weighting)
    x0, noise = torch.randn(2, 7, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert weighting.u(sigma).dtype == torch.float32 and torch.equal(weighting.u(sigma), u)
        denoiser.loss(x0, noise, sigma).mean().backward()
    assert weighting.slope.grad.abs().min() > 0
    again = build(spec_of(weighting))
    again.reach(parameterization.sigma_max)  # as its denoiser lets it
    again.load_state_dict(weighting.state_dict())
    torch.testing.assert_close(again.weighted(loss, sigma, c), weighting.weighted(loss, sigma, c))
    with pytest.raises(UserError, match="features"):
        LearnedUncertainty(features=0)
