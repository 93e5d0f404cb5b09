"""Norms, clipping and unscaling are torch's own; figures are means over samples, however they came."""

import pytest
import torch
from torch import nn

from ldm.training.optimization import gradients
from ldm.training.trainer.means import Means, means_of


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    made = [nn.Linear(3, 5), nn.Linear(2, 2)]
    for network in made:
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_by_norm_and_by_value_are_torchs(limit):
    ours, theirs = networks(), networks()
    norms = gradients.norms_of([list(network.parameters()) for network in ours])
    gradients.clip_by_norm(norms, limit)
    wanted = [nn.utils.clip_grad_norm_(network.parameters(), limit) for network in theirs]
    assert_same_gradients(ours, theirs)
    assert [norm.item() for _, norm in norms.parts] == [norm.item() for norm in wanted]
    torch.testing.assert_close(norms.total, torch.stack(wanted).square().sum().sqrt())
    gradients.clip_by_value(norms, 0.1)
    nn.utils.clip_grad_value_([p for network in theirs for p in network.parameters()], 0.1)
    assert_same_gradients(ours, theirs)


def assert_same_gradients(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_parameters_without_gradient_are_passed_over():
    a, b = networks()
    a.bias.grad = None
    b.zero_grad()
    norms = gradients.norms_of([list(a.parameters()), list(b.parameters())])
    assert norms.total.item() == pytest.approx(a.weight.grad.norm().item()) and len(norms.parts) == 1
    assert gradients.norms_of([list(b.parameters())]).total == 0


def test_figures_are_means_over_samples_however_they_are_batched():
    values = torch.rand(37)
    found = []
    for size in (5, 16, 37):
        means = Means()
        for part in values.split(size):
            means.add({"loss": part.mean()}, len(part))
        found.append(means.taken())
    assert found[0][0]["loss"] == pytest.approx(found[1][0]["loss"], rel=1e-6)
    assert found[2] == ({"loss": pytest.approx(values.mean().item())}, 37)
    assert means.taken() == ({}, 0)  # it began again


def test_rows_that_do_not_count_and_figures_that_some_have():
    means = Means()
    means.add({"loss": torch.tensor(1.0), "lpips": torch.tensor(4.0)}, 3)
    means.add({"loss": torch.tensor(5.0)}, 1)
    means.add({"loss": torch.tensor(float("nan"))}, 0)
    assert means.taken() == ({"loss": 2.0, "lpips": 4.0}, 4)
    assert means_of([{"mse": (3.0, 3), "lpips": (12.0, 3)}, {"mse": (3.0, 1)}, {}]) == {"mse": 1.5, "lpips": 4.0}
