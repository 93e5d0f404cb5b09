"""Distances against closed forms and their definitions written out."""

import math

import pytest
import torch

from ldm.evaluation.measures.distances import frechet_distance, kernel_distance, precision_recall


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Of diagonal Gaussians: the sum of (mean difference)^2 + (std difference)^2."""
    d, shift, scale = 4, 3.0, 2.0
    x = normal(4000, d, 0)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # mean 0 and covariance 1 exactly
    assert frechet_distance(x, scale * x + shift) == pytest.approx(d * (shift**2 + (scale - 1) ** 2), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (20, 30, 64), (100, 20, 50)])
def test_frechet_distance_is_its_definition(n: int, m: int, d: int) -> None:
    a, b = normal(n, d, 1) @ normal(d, d, 2), normal(m, d, 3) + 0.5
    ca, cb = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_a_set_against_itself_is_at_distance_zero() -> None:
    x = normal(300, 40, 0)
    assert frechet_distance(x, x) < 1e-9 * float(x.square().sum(1).mean())


def test_kernel_distance_is_its_definition() -> None:
    a, b = normal(7, 3, 0), normal(5, 3, 1) + 1

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [sum(k(x, y) for x in s for y in s if x is not y) / (len(s) * (len(s) - 1)) for s in (list(a), list(b))]
    between = sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_kernel_distance_has_no_bias_where_the_frechet_distance_has() -> None:
    pairs = [(normal(30, 8, 2 * i), normal(30, 8, 2 * i + 1)) for i in range(200)]
    kernel = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / math.sqrt(len(pairs))
    assert min(frechet_distance(a, b) for a, b in pairs) > 0.3


def test_precision_and_recall_see_what_is_missing_on_each_side() -> None:
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0]], dtype=torch.float64).repeat_interleave(50, 0)
    real = centres + normal(100, 2, 0)
    half = normal(100, 2, 1)  # one of the two modes
    precision, recall = precision_recall(half, real)
    assert precision > 0.85 and 0.4 < recall <= 0.55
    precision, recall = precision_recall(real, half)
    assert 0.4 < precision <= 0.55 and recall > 0.85


def test_a_set_covers_itself_and_its_duplicates() -> None:
    x = normal(40, 30, 0).repeat_interleave(5, 0)  # radii of 0
    assert precision_recall(x, x) == (1.0, 1.0)
