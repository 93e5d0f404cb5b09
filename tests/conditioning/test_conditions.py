"""Guidance by several conditions: what is evaluated, with which weights, and that it is the formula."""

import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner, Inpaint, LowRes, SemanticMap, Text, conditions_of
from ldm.conditioning.text import tokenizer


@pytest.fixture(scope="module")
def conditioner() -> Conditioner:
    torch.manual_seed(0)
    words = Text(tokenizer.train(["a cat"], 280), length=24, dim=8, depth=1, heads=2)
    return Conditioner(
        {"text": words, "kind": ClassLabel(3, ["cat", "dog", "fish"], dim=8), "map": SemanticMap(2)}
    ).eval()


GIVEN = {"text": ["a cat"], "label": ["dog"], "map": [torch.ones(4, 4)]}


def weighted(conditioner: Conditioner, guidance, given=GIVEN, **options):
    """The conditions, from the fewest to all, and their weights in the sum of their predictions."""
    conditions = conditions_of(conditioner, given, size=(4, 4), **options)
    terms = conditions.terms(guidance, lambda x: x, range(conditions.count))
    conds, weights = zip(*terms.others, strict=True) if terms.others else ((), ())
    return [*conds, terms.full], [*weights, 1 - sum(weights)]


def encoded(conditioner: Conditioner, given: dict) -> torch.Tensor:
    """Everything that a condition says, flat: to know one by."""
    return flat(conditioner(conditioner.parse(given, (4, 4))))


def flat(cond) -> torch.Tensor:
    return torch.cat([t.float().flatten() for t in (cond.vector, cond.tokens, cond.concat)])


@torch.no_grad()
def test_one_number_is_the_null_condition_and_all(conditioner: Conditioner) -> None:
    conds, weights = weighted(conditioner, 3.0)
    assert weights == [-2, 3]
    assert torch.equal(flat(conds[0]), encoded(conditioner, {})) and torch.equal(
        flat(conds[1]), encoded(conditioner, GIVEN)
    )
    conds, weights = weighted(conditioner, 1.0)
    assert weights == [1] and torch.equal(flat(conds[0]), encoded(conditioner, GIVEN))
    conds, weights = weighted(conditioner, 0.0)
    assert weights == [1] and torch.equal(flat(conds[0]), encoded(conditioner, {}))


@torch.no_grad()
def test_scales_are_added_from_the_smallest_on_each_against_all_before(conditioner: Conditioner) -> None:
    conds, weights = weighted(conditioner, {"text": 4, "map": 1.5, "kind": 2})
    before = [{}, {"map"}, {"map", "label"}, {"map", "label", "text"}]
    for cond, keys in zip(conds, before, strict=True):
        assert torch.equal(flat(cond), encoded(conditioner, {k: v for k, v in GIVEN.items() if k in keys}))
    assert weights == [-0.5, -0.5, -2, 4] and sum(weights) == 1


@torch.no_grad()
def test_equal_scales_count_as_one_and_those_not_named_are_1(conditioner: Conditioner) -> None:
    assert weighted(conditioner, {"text": 2, "map": 2, "kind": 2})[1] == weighted(conditioner, 2.0)[1]
    conds, weights = weighted(conditioner, {"text": 3})  # map and label are known on both sides
    assert weights == [-2, 3]
    assert torch.equal(flat(conds[0]), encoded(conditioner, {"label": ["dog"], "map": GIVEN["map"]}))


@torch.no_grad()
def test_scale_0_leaves_a_condition_out_and_no_condition_costs_nothing(conditioner: Conditioner) -> None:
    conds, weights = weighted(conditioner, {"text": 3, "map": 0, "kind": 0})
    assert weights == [-2, 3] and torch.equal(flat(conds[1]), encoded(conditioner, {"text": ["a cat"]}))
    conds, weights = weighted(conditioner, {"text": 3, "map": 1.5}, {"text": ["a cat"]})
    assert weights == [-2, 3]
    assert weighted(conditioner, 5.0, {})[1] == [1]


@torch.no_grad()
def test_a_small_change_of_scales_is_a_small_change(conditioner: Conditioner) -> None:
    """Continuous also where two scales change places."""

    def denoised(guidance) -> torch.Tensor:
        conds, weights = weighted(conditioner, guidance)
        return sum(w * flat(c).sum().sin() for c, w in zip(conds, weights, strict=True))

    below, above = ({"text": 2 + e, "map": 2, "kind": 1} for e in (-1e-4, 1e-4))
    assert abs(denoised(below) - denoised(above)) < 1e-2


@torch.no_grad()
def test_a_negative_prompt_stands_in_for_no_prompt(conditioner: Conditioner) -> None:
    conds, weights = weighted(conditioner, {"text": 3}, {"map": GIVEN["map"]}, negative="a dog")
    assert weights == [-2, 3]
    assert torch.equal(flat(conds[0]), encoded(conditioner, {"text": ["a dog"], "map": GIVEN["map"]}))
    assert torch.equal(flat(conds[1]), encoded(conditioner, {"map": GIVEN["map"]}))


@torch.no_grad()
def test_what_is_there_is_never_guided_away_from_by_a_number() -> None:
    """An image to fill and a low resolution stay on both sides, unless they are named."""
    conditioner = Conditioner({"kind": ClassLabel(3, dim=8), "fill": Inpaint(3), "low": LowRes(3)}).eval()
    given = {"label": [1], "image": [torch.rand(3, 4, 4)], "mask": [torch.zeros(1, 4, 4)]}
    given |= {"low_res": [torch.rand(3, 2, 2)]}
    conds, weights = weighted(conditioner, 3.0, given)
    assert weights == [-2, 3]
    assert torch.equal(conds[0].concat, conds[1].concat) and not torch.equal(conds[0].vector, conds[1].vector)
    conds, weights = weighted(conditioner, {"label": 3, "low": 2}, given)
    assert weights == [-1, -1, 3] and not torch.equal(conds[0].concat, conds[1].concat)


@pytest.mark.parametrize(
    ("given", "guidance", "words"),
    [
        (GIVEN, {"mpa": 2}, "no condition 'mpa'; it has text, kind, map"),
        ({"image": [0]}, 1, "can't take image; it was trained with text, label, map"),
        ({"image": [0], "text": ["a", "b"]}, 1, "can't take image"),
        ({"text": ["a", "b"], "label": [0]}, 1, "differ in number: 2 of text, 1 of label"),
        ({"map": [torch.full((4, 4), 2)]}, 1, "class 2; this model knows 0 to 1"),
    ],
)
def test_mistakes_are_answered_in_words(conditioner: Conditioner, given, guidance, words: str) -> None:
    with pytest.raises(UserError, match=words):
        weighted(conditioner, guidance, given)


@torch.no_grad()
def test_one_map_serves_every_prompt(conditioner: Conditioner) -> None:
    conditions = conditions_of(conditioner, {"text": ["a cat", "a dog"], "map": [torch.ones(4, 4)]}, n=2, size=(4, 4))
    assert conditions.count == 4 and conditions.batch["map"].shape == (4, 4, 4)
    assert conditions.take(torch.tensor([1, 2])).batch["text"] == ["a cat", "a dog"]
