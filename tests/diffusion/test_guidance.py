from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.diffusion import EDM, Denoiser, Terms, V, autoguidance, classifier_free, euler, guided


@dataclass(frozen=True)
class Cond:
    vector: Tensor  # (B, 3)

    def cat(self, *others):
        return Cond(torch.cat([self.vector, *(o.vector for o in others)]))


class Model:
    """A conditional denoiser that counts its calls and the images it was given."""

    def __init__(self, weight=1.0):
        self.calls, self.images, self.weight = 0, 0, weight

    def __call__(self, x, sigma, cond):
        self.calls, self.images = self.calls + 1, self.images + len(x)
        shift = 0.0 if cond is None else cond.vector.view(-1, 3, 1, 1)
        return torch.tanh(self.weight * x + shift) / (1 + sigma.view(-1, 1, 1, 1))


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def data():
    x, sigma = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.full((2,), 1.5, dtype=torch.float64)
    a, b, null = (Cond(v) for v in torch.randn(3, 2, 3, dtype=torch.float64))
    return x, sigma, a, b, null


def test_guidance_extrapolates_from_null_to_cond(model, data):
    x, sigma, a, _, null = data
    d, d_null = model(x, sigma, a), model(x, sigma, null)
    for scale in (0.5, 3.0, 7.5, -1.0):
        result = guided(model, classifier_free(a, null, scale))(x, sigma)
        torch.testing.assert_close(result, d_null + scale * (d - d_null))


def test_what_has_no_weight_is_not_evaluated(model, data):
    x, sigma, a, b, null = data
    for terms in (Terms(a), classifier_free(a, null, 1.0), Terms(a, ((b, 0.0), (null, 0.0)))):
        model.images = 0
        result = guided(model, terms)(x, sigma)
        assert model.images == 2
        assert torch.equal(result, model(x, sigma, a))


@pytest.mark.parametrize("weights", [(-1.0, -1.5), (0.4, 0.6), (3.0, -2.0)])
def test_terms_are_added_up_in_one_call(weights, model, data):
    x, sigma, a, b, null = data
    terms = Terms(a, ((b, weights[0]), (null, weights[1])))
    d, others = model(x, sigma, a), [model(x, sigma, b), model(x, sigma, null)]
    expected = d + sum(w * (other - d) for w, other in zip(weights, others, strict=True))
    model.calls = 0
    torch.testing.assert_close(guided(model, terms)(x, sigma), expected)
    assert model.calls == 1


def test_an_interval_saves_calls(model, data):
    x, _, a, _, null = data
    terms = classifier_free(a, null, 3.0)
    denoise = guided(model, terms, interval=(0.5, 2.0))
    for sigma, images in ((0.5, 2), (0.51, 4), (2.0, 4), (2.01, 2)):
        model.images = 0
        level = torch.full((2,), sigma, dtype=torch.float64)
        result = denoise(x, level)
        assert model.images == images, sigma
        if images == 2:
            assert torch.equal(result, model(x, level, a))
        else:
            torch.testing.assert_close(result, guided(model, terms)(x, level))


def test_rescaling_works_in_v_space(data):
    """D becomes v, v takes the conditional's spread, and comes back: the long way round, by V's own coefficients."""
    x, sigma, a, _, null = data
    model, c = Model(), V().coefficients(sigma)

    def v_of(denoised):
        return (denoised - c.c_skip.view(-1, 1, 1, 1) * x) / c.c_out.view(-1, 1, 1, 1)

    plain = guided(model, classifier_free(a, null, 6.0))(x, sigma)
    v, v_cond = v_of(plain), v_of(model(x, sigma, a))
    rescaled = v * v_cond.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
    v = 0.7 * rescaled + 0.3 * v
    expected = c.c_skip.view(-1, 1, 1, 1) * x + c.c_out.view(-1, 1, 1, 1) * v
    torch.testing.assert_close(guided(model, classifier_free(a, null, 6.0), rescale=0.7)(x, sigma), expected)
    full = v_of(guided(model, classifier_free(a, null, 6.0), rescale=1.0)(x, sigma))
    torch.testing.assert_close(full.std((1, 2, 3)), v_cond.std((1, 2, 3)))
    torch.testing.assert_close(guided(model, classifier_free(a, null, 1.0), rescale=0.7)(x, sigma), model(x, sigma, a))


def test_autoguidance_moves_away_from_the_bad_model(model, data):
    x, sigma, a, _, _ = data
    bad = Model(weight=0.5)
    for cond in (a, None):
        d, d_bad = model(x, sigma, cond), bad(x, sigma, cond)
        torch.testing.assert_close(autoguidance(model, bad, cond, 2.5)(x, sigma), d_bad + 2.5 * (d - d_bad))
    bad.calls = 0
    assert torch.equal(autoguidance(model, bad, a)(x, sigma), model(x, sigma, a)) and bad.calls == 0


def test_guided_denoisers_go_through_samplers(data):
    x, _, a, _, null = data
    seen = []

    def network(x, c_noise, cond):
        seen.append((x.shape, c_noise.shape, cond.vector.shape))
        return x * 0.1 + cond.vector.view(-1, 3, 1, 1)

    sigmas = EDM().grid(6)
    denoiser = Denoiser(network, EDM())
    result = euler(guided(denoiser, classifier_free(a, null, 2.0), interval=(0.01, 10)), x * 80, sigmas)
    assert result.shape == x.shape and result.isfinite().all()
    inside = sum(0.01 < s <= 10 for s in sigmas.tolist())
    assert [shape[0][0] for shape in seen].count(4) == inside and len(seen) == 6


def test_what_is_refused(model, data):
    _, _, a, _, null = data
    with pytest.raises(UserError, match="rescale"):
        guided(model, classifier_free(a, null, 2.0), rescale=1.5)
