import itertools

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data.order import PositionSampler, index_of


def take(sampler: PositionSampler, n: int) -> list[np.ndarray]:
    return list(itertools.islice(sampler, n))


def test_every_epoch_shows_every_sample_once_in_its_own_order():
    n = 97
    epochs = [index_of(np.arange(e * n, (e + 1) * n), n, seed=3) for e in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(n))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    assert (epochs[0] != index_of(np.arange(n), n, seed=4)).any()


def test_a_batch_across_epochs_equals_its_parts():
    position = np.arange(5, 40)
    whole = index_of(position, 10, seed=0)
    single = np.concatenate([index_of(position[i : i + 1], 10, seed=0) for i in range(len(position))])
    np.testing.assert_array_equal(whole, single)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_share_each_global_batch(world):
    shares = [take(PositionSampler(8, rank, world), 5) for rank in range(world)]
    for step in range(5):
        together = np.concatenate([share[step] for share in shares])
        np.testing.assert_array_equal(together, np.arange(8 * step, 8 * step + 8))


def test_a_run_resumes_at_any_position():
    whole = np.concatenate(take(PositionSampler(6), 10))
    sampler = PositionSampler(6)
    sampler.start = 24
    np.testing.assert_array_equal(np.concatenate(take(sampler, 6)), whole[24:])


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="multiple of 4"):
        PositionSampler(6, 0, 4)
