import pytest
import torch

from ldm.diffusion import EDM, X0, Eps, Flow, MinSNR, Schedule, Uniform, V
from ldm.errors import UserError

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


def test_uniform_is_one_and_gamma_is_checked():
    assert torch.equal(Uniform().weight(SIGMA, Eps().coefficients(SIGMA)), torch.ones(7, dtype=torch.float64))
    with pytest.raises(UserError, match="gamma"):
        MinSNR(gamma=0.0)
