"""Attention's two ways on a CPU, and conditions that are joined."""

import pytest
import torch
import torch.nn.functional as F

from ldm.networks import Cond
from ldm.networks.layers import PLAIN_ATTENTION_PAIRS, attend, timestep_embedding


@pytest.mark.parametrize("n", [7, PLAIN_ATTENTION_PAIRS // 9 + 1], ids=["plain", "fused"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_the_formula(n, masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, n, 12), torch.randn(2, 9, 12), torch.randn(2, 9, 12)
    mask = torch.arange(9) < torch.tensor([[9], [4]]) if masked else None
    out = attend(q, k, v, 3, mask)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        for b, length in enumerate([9, 4 if masked else 9]):
            weights = (q[b, :, part] @ k[b, :length, part].T / 2).softmax(1)
            torch.testing.assert_close(out[b, :, part], weights @ v[b, :length, part], atol=1e-5, rtol=1e-5)


def test_both_ways_have_the_same_gradients(monkeypatch):
    q, k, v = (torch.randn(2, 6, 8, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    plain = torch.autograd.grad(attend(q, k, v, 2, mask).square().sum(), (q, k, v))
    monkeypatch.setattr("ldm.networks.layers.PLAIN_ATTENTION_PAIRS", 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy := Spy(F.scaled_dot_product_attention))
    fused = torch.autograd.grad(attend(q, k, v, 2, mask).square().sum(), (q, k, v))
    assert spy.calls == 1
    torch.testing.assert_close(plain, fused)


class Spy:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("dim", [2, 9, 64])
def test_timesteps_are_embedded_as_diffusers_does(dim):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 0.37, 999.0])
    wanted = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, dim), wanted, atol=1e-6, rtol=1e-6)


def test_conditions_are_joined_over_the_batch_with_padding_masked():
    short = Cond(tokens=torch.ones(1, 2, 4), vector=torch.ones(1, 3), control={"edges": torch.ones(1, 1, 8, 8)})
    long = Cond(
        tokens=torch.full((2, 5, 4), 2.0),
        mask=torch.tensor([[True] * 5, [True] * 4 + [False]]),
        vector=torch.full((2, 3), 2.0),
        control={"edges": torch.zeros(2, 1, 8, 8)},
    )
    joined = short.cat(long)
    assert joined.tokens.shape == (3, 5, 4) and joined.vector[:, 0].tolist() == [1, 2, 2]
    assert joined.mask.sum(1).tolist() == [2, 5, 4]
    assert joined.control["edges"].shape == (3, 1, 8, 8)
    assert torch.equal(joined.map(lambda t: t[:1]).tokens[:, :2], short.tokens)


def test_conditions_of_the_same_length_without_a_mask_stay_seen():
    joined = Cond(tokens=torch.ones(1, 2, 4)).cat(Cond(tokens=torch.ones(1, 2, 4), mask=torch.tensor([[True, False]])))
    assert joined.mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    "one",
    [
        {"vector": torch.ones(1, 3)},
        {"tokens": torch.ones(1, 2, 3)},
        {"concat": torch.ones(1, 1, 2, 2)},
        {"control": {"edges": torch.ones(1, 1, 8, 8)}},
    ],
    ids=lambda one: next(iter(one)),
)
def test_conditions_of_unlike_kinds_are_not_joined(one):
    for first, second in ((Cond(**one), Cond()), (Cond(), Cond(**one))):
        with pytest.raises(ValueError, match="joined"):
            first.cat(second)


def test_nothing_joined_with_nothing_is_nothing():
    assert Cond().cat(Cond()) == Cond()
