"""Attention on a CPU: the plain product and the fused kernel."""

import pytest
import torch
import torch.nn.functional as F

from ldm.networks.attention import PLAIN_ATTENTION_PAIRS, attend


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
    monkeypatch.setattr("ldm.networks.attention.PLAIN_ATTENTION_PAIRS", 0)
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
