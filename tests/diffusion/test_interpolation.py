"""Spherical interpolation: its ends, its lengths, its angles."""

import math

import pytest
import torch

from ldm.diffusion import slerp


def test_the_ends_are_the_ends_and_the_way_is_even():
    a, b = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    steps = [slerp(a, b, t) for t in torch.linspace(0, 1, 6).tolist()]
    angles = torch.stack([torch.cosine_similarity(x, y, -1).arccos() for x, y in zip(steps, steps[1:], strict=False)])
    torch.testing.assert_close(angles, angles.mean(0).expand(5, -1), atol=1e-3, rtol=1e-3)
    lengths = torch.stack([x.norm(dim=-1) for x in steps])
    wanted = torch.lerp(a.norm(dim=-1), b.norm(dim=-1), torch.linspace(0, 1, 6)[:, None])
    torch.testing.assert_close(lengths, wanted, atol=1e-4, rtol=1e-4)


def test_a_quarter_circle():
    half = slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
    torch.testing.assert_close(half, torch.full((2,), math.sqrt(2)))


def test_noise_stays_noise_where_the_straight_line_loses_spread():
    a, b = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert slerp(a, b, 0.5, (1, 2, 3)).std() == pytest.approx(1, abs=0.02)
    assert torch.lerp(a, b, 0.5).std() < 0.75


def test_parallel_opposite_and_zero_vectors_give_numbers():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), (a + b) / 2)


def test_each_row_at_its_own_place():
    a, b = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.3, 1.0])
    rows = slerp(a, b, t[:, None])
    for i, place in enumerate(t.tolist()):
        torch.testing.assert_close(rows[i], slerp(a[i], b[i], place))
