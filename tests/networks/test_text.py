"""The text encoder: padding never changes a result."""

import torch

from ldm.networks import TextTransformer


def encoder() -> TextTransformer:
    torch.manual_seed(0)
    network = TextTransformer(50, 12, dim=16, depth=2, heads=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # no block is the identity any more
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@torch.no_grad()
def test_padding_never_changes_a_result():
    network = encoder()
    ids = torch.tensor([[3, 7, 1, 0]])
    alone = network(ids, torch.ones(1, 4, dtype=torch.bool))
    for filler in (0, 49):  # what stands in the padding doesn't matter, nor how much there is
        for length in (5, 12):
            padded = torch.full((2, length), filler)
            padded[0, :4] = ids
            mask = torch.arange(length) < torch.tensor([[4], [length]])
            torch.testing.assert_close(network(padded, mask)[:1, :4], alone, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_order_matters():
    network = encoder()
    mask = torch.ones(1, 3, dtype=torch.bool)
    one, other = (network(torch.tensor([ids]), mask) for ids in ([3, 7, 1], [1, 7, 3]))
    assert (one.mean(1) - other.mean(1)).abs().max() > 1e-4


def test_padding_gets_no_gradient():
    network = encoder()
    mask = torch.tensor([[True, True, False]])
    (network(torch.tensor([[3, 7, 20]]), mask) * mask[..., None]).square().sum().backward()
    touched = network.token_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [3, 7]
