import math

import numpy as np
import pytest
import torch

from ldm.common import randomness
from ldm.common.randomness import low_discrepancy, normal, permutation, uniform

POSITIONS = torch.arange(4000)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_sample_has_its_numbers_whatever_the_batch(draw):
    whole = draw(7, "noise", POSITIONS, (3, 5))
    assert whole.shape == (4000, 3, 5) and whole.dtype == torch.float32
    assert torch.equal(draw(7, "noise", POSITIONS[100:108], (3, 5)), whole[100:108])
    assert torch.equal(draw(7, "noise", POSITIONS[[17, 3]], (3, 5)), whole[[17, 3]])
    state = torch.get_rng_state()
    draw(7, "noise", POSITIONS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seeds_streams_and_positions_are_independent(draw):
    rows = [draw(seed, stream, POSITIONS, (8,)) for seed in (0, 1, 2**40, -1) for stream in ("noise", "sigma")]
    rows = [*rows, draw(0, "noise", POSITIONS + 1, (8,))[:, :7], draw(0, "noise", POSITIONS, (8,))[:, 1:]]
    columns = torch.stack([row[:, :7].flatten() for row in rows[:-1]] + [rows[-1].flatten()])
    correlation = torch.corrcoef(columns) - torch.eye(len(columns))
    assert correlation.abs().max() < 5 / math.sqrt(columns.shape[1])


def test_uniform_is_uniform():
    u = uniform(3, "u", POSITIONS, (64,)).flatten().double()
    assert u.min() > 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / len(u)))
    counts = torch.histc(u, 100, 0, 1)
    chi2 = ((counts - len(u) / 100) ** 2 / (len(u) / 100)).sum().item()
    assert chi2 < 99 + 5 * math.sqrt(2 * 99)


def test_extreme_bits_stay_within_the_open_interval():
    """u = 1 would be an infinite noise level."""
    u = randomness._to_unit(torch.tensor([0, -1]))
    assert u[0] > 0 and u[1] < 1


def test_normal_is_normal():
    z = normal(3, "z", POSITIONS, (65,)).flatten().double()  # odd: the last number of a pair is left out
    n = len(z)
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert z.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    assert (z**4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / n))
    quantiles = torch.special.ndtr(z).sort().values
    expected = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (quantiles - expected).abs().max() < 2 / math.sqrt(n)  # Kolmogorov-Smirnov
    assert z.isfinite().all()


def test_low_discrepancy_covers_a_batch_evenly_and_is_a_function_of_position():
    u = low_discrepancy(5, "sigma", POSITIONS)
    assert torch.equal(low_discrepancy(5, "sigma", POSITIONS[64:96]), u[64:96])
    assert not torch.equal(low_discrepancy(6, "sigma", POSITIONS), u)
    assert u.min() > 0 and u.max() < 1
    for start in (0, 100, 3000):
        ordered = u[start : start + 64].sort().values.double()
        gaps = torch.cat([ordered, ordered[:1] + 1]).diff()
        assert gaps.max() < 2.7 / 64  # three-distance theorem; of random numbers the largest gap is about 4.7 / 64


def test_known_values():
    """Changing these numbers changes every resumed run: SplitMix64's own test vector, and one draw of each kind."""
    splitmix = randomness._mix(torch.tensor([1234567, 0]) + randomness._GOLDEN)
    assert splitmix[0].item() % 2**64 == 6457827717110365317
    assert splitmix[1].item() % 2**64 == 16294208416658607535


def test_permutations():
    order = permutation(0, 0, 1000)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(permutation(0, 0, 1000), order)
    assert not np.array_equal(permutation(0, 1, 1000), order) and not np.array_equal(permutation(1, 0, 1000), order)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [-5, 2**63, 2**64 - 1])
def test_permutations_of_any_seed(seed):
    """A key above 2^63 beside a small one would become float64, which can't tell such seeds apart."""
    order = permutation(seed, 3, 100)
    assert sorted(order) == list(range(100))
    assert not np.array_equal(permutation(seed - 1, 3, 100), order)
