"""Conditions of several batches, joined."""

import pytest
import torch

from ldm.networks import Cond


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
