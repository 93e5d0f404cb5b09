"""Labels, several conditions in one, their coins, and what a user passes."""

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner, Text, merge
from ldm.conditioning.text import tokenizer
from ldm.data import Table
from ldm.images import Preprocess
from ldm.networks import Cond

NAMES = ["cat", "dog", "fish"]


def label(**options) -> ClassLabel:
    return ClassLabel(3, NAMES, dim=8, **options)


def both(**options) -> Conditioner:
    torch.manual_seed(0)
    text = Text(tokenizer.train(["a cat"], 280), length=24, dim=8, depth=1, heads=2, pooled=False, **options)
    return Conditioner({"kind": label(**options), "caption": text}).eval()


# Labels --------------------------------------------------------------------------------------------------------------


def test_a_label_is_a_vector_and_a_token():
    part = label()
    cond = part(torch.tensor([2, 0]))
    assert torch.equal(cond.vector, part.embedding.weight[[2, 0]])
    assert torch.equal(cond.tokens[:, 0], cond.vector) and cond.mask.all()


def test_labels_are_dropped_one_by_one():
    part = label()
    cond = part(torch.tensor([2, 0, 1]), torch.tensor([False, True, False]))
    assert torch.equal(cond.vector, part.embedding.weight[[2, 3, 1]])
    assert torch.equal(part(part.null_values(1)).vector, cond.vector[1:2])


def test_labels_are_given_by_name_or_number():
    assert label().parse(["dog", 2, "1", np.int64(0)]).tolist() == [1, 2, 1, 0]
    assert ClassLabel(2, ["7", "1"]).parse(["7", "1", 1]).tolist() == [0, 1, 1]  # a word is a name first
    folders = ClassLabel(4, ["1", "2", "3", "10"])
    assert folders.parse([1, 2, 3, 10, "10", 0]).tolist() == [0, 1, 2, 3, 3, 0]
    assert ClassLabel(2, ["01", "02"]).parse([1, "2", 0]).tolist() == [0, 1, 0]


def test_examples_of_labels_are_the_classes_that_they_came_from():
    part = ClassLabel(5, ["1", "2", "crane", "10", "crane"])  # ImageNet has two cranes
    labels = torch.tensor([0, 1, 2, 3, 4])
    assert part.parse(part.example({"label": labels}, 0)["label"]).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dgo", "no class is called 'dgo'. Did you mean 'dog'"),
        (3, "label 3 is out of range: this model knows 0 to 2"),
        (-1, "label -1 is out of range"),
        ("9", "label 9 is out of range"),
        (None, "no class is called 'None'"),
        (1.5, "no class is called '1.5'"),
    ],
)
def test_a_wrong_label_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        label().parse([0, value])


def test_a_number_that_no_class_is_called_is_refused_with_the_names():
    with pytest.raises(UserError, match="no class is called 7: this model knows 4 classes: 0 = 1, .*, 3 = 10"):
        ClassLabel(4, ["1", "2", "3", "10"]).parse([7])
    with pytest.raises(UserError, match="knows 0 to 2: 3 classes: 0 = cat, "):
        label().parse([3])


def test_classes_are_read_off_the_data():
    images, preprocess = np.zeros((3, 1, 4, 4), np.uint8), Preprocess(1, 4, 4)
    columns = {"label": np.array([0, 5, 2])}
    named = Table(images, columns, preprocess, "key", classes=tuple("abcdefg"))
    assert ClassLabel.derive(named, {}) == {"classes": 7, "names": list("abcdefg")}
    assert ClassLabel.derive(Table(images, columns, preprocess, "key"), {}) == {"classes": 6, "names": []}


# Several in one ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_conditions_come_together_in_the_order_of_the_parts():
    conditioner = both(drop_prob=0.1)
    batch = {"label": torch.tensor([1, 2]), "text": ["a cat", "a cat and more"]}
    cond = conditioner(batch)
    kind, caption = conditioner.parts["kind"](batch["label"]), conditioner.parts["caption"](batch["text"])
    assert conditioner.needs == ("label", "text")
    assert (conditioner.token_dim, conditioner.vector_dim, conditioner.concat_channels) == (8, 8, 0)
    assert torch.equal(cond.tokens, torch.cat([kind.tokens, caption.tokens], 1))
    assert torch.equal(cond.mask, torch.cat([kind.mask, caption.mask], 1))
    assert torch.equal(cond.vector, kind.vector)


def test_merge_joins_each_role_over_its_own_dimension():
    one = Cond(vector=torch.ones(2, 3), tokens=torch.ones(2, 1, 4), concat=torch.ones(2, 1, 5, 5))
    other = Cond(
        vector=torch.zeros(2, 2),
        tokens=torch.zeros(2, 2, 4),
        mask=torch.tensor([[True, False], [True, True]]),
        concat=torch.zeros(2, 2, 5, 5),
        control={"edges": torch.zeros(2, 1, 9, 9)},
    )
    cond = merge([one, Cond(), other])
    assert cond.vector[0].tolist() == [1, 1, 1, 0, 0]
    assert cond.tokens.shape == (2, 3, 4)
    assert cond.mask.tolist() == [[True, True, False], [True, True, True]]
    assert cond.concat.shape == (2, 3, 5, 5) and list(cond.control) == ["edges"]
    assert merge([]) == merge([Cond(), Cond()]) == Cond()


def test_parts_that_disagree_on_the_token_dim_are_refused():
    with pytest.raises(UserError, match=r"differ in dim.*'a': 8.*'b': 16"):
        Conditioner({"a": ClassLabel(2, dim=8), "b": ClassLabel(2, dim=16)})


@torch.no_grad()
def test_null_is_every_part_dropped():
    conditioner = both(drop_prob=0.1)
    batch = {"label": torch.tensor([1, 2]), "text": ["a cat", "a cat and more"]}
    everything = {name: torch.ones(2, dtype=torch.bool) for name in conditioner.parts}
    dropped, null = conditioner(batch, everything), conditioner.null(2)
    for name in ("vector", "tokens", "mask"):
        assert torch.equal(getattr(dropped, name), getattr(null, name))


@torch.no_grad()
def test_one_part_is_dropped_without_the_other():
    conditioner = both(drop_prob=0.1)
    batch = {"label": torch.tensor([1, 2]), "text": ["a cat", "a cat"]}
    kept, dropped = conditioner(batch), conditioner(batch, {"kind": torch.tensor([True, False])})
    assert torch.equal(dropped.tokens[:, 1:], kept.tokens[:, 1:])
    assert torch.equal(dropped.tokens[1], kept.tokens[1])
    assert not torch.equal(dropped.tokens[0, 0], kept.tokens[0, 0])


# Coins ---------------------------------------------------------------------------------------------------------------


def test_coins_are_the_samples_own_whatever_the_batch():
    conditioner, positions = both(drop_prob=0.3), torch.arange(1000, 1064)
    whole = conditioner.coins(7, positions)
    for pieces in (positions.split(1), positions.split(24)):
        parts = [conditioner.coins(7, piece) for piece in pieces]
        for name in whole:
            assert torch.equal(torch.cat([p[name] for p in parts]), whole[name])
    order = torch.randperm(64)
    assert torch.equal(conditioner.coins(7, positions[order])["kind"], whole["kind"][order])
    assert not torch.equal(conditioner.coins(8, positions)["kind"], whole["kind"])


def test_each_part_has_its_own_coins_at_its_own_rate():
    conditioner, n = both(drop_prob=0.3), 20_000
    kind, caption = (coins.double() for coins in conditioner.coins(0, torch.arange(n)).values())
    spread = 5 * (0.3 * 0.7 / n) ** 0.5
    assert abs(kind.mean() - 0.3) < spread and abs(caption.mean() - 0.3) < spread
    assert abs((kind * caption).mean() - 0.09) < spread  # independent


def test_a_part_that_is_never_dropped_has_no_coins():
    assert both(drop_prob=0.0).coins(0, torch.arange(4)) == {}


# What a user passes --------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_null():
    batch = both().parse({"label": ["dog", 0]})
    assert batch["label"].tolist() == [1, 0] and batch["text"] == ["", ""]
    batch = both().parse({})
    assert batch["label"].tolist() == [3] and batch["text"] == [""]


@pytest.mark.parametrize(
    ("conditioner", "given", "message"),
    [
        (both(), {"map": [0]}, "can't take map; it was trained with label, text"),
        (Conditioner({"kind": label()}), {"text": ["a cat"]}, "can't take text; it was trained with label"),
        (Conditioner(), {"text": ["x"], "label": [0]}, "can't take text, label; .* no condition at all"),
    ],
    ids=["map", "text", "unconditional"],
)
def test_a_condition_that_the_model_has_not_is_refused_with_those_it_has(conditioner, given, message):
    with pytest.raises(UserError, match=message):
        conditioner.parse(given)


def test_unconditional_is_an_empty_condition():
    assert Conditioner()({}) == Conditioner().null(3) == Cond()
    assert Conditioner().needs == ()


@torch.no_grad()
@pytest.mark.parametrize("read_on_the_host", [False, True])
def test_unguided_is_the_null_condition_of_all_that_guidance_acts_on(read_on_the_host: bool) -> None:
    """Also where the reader has made tokens of the captions already, which a later drop can't change."""
    conditioner = both(drop_prob=0.5)
    batch = {"label": torch.tensor([0, 2]), "text": ["a cat", "a"], "position": torch.arange(2)}
    read = conditioner.reader(seed=0)(batch, training=False) if read_on_the_host else batch
    cond, unguided, null = conditioner(read), conditioner.unguided(read), conditioner.null(2)
    assert torch.equal(unguided.vector, null.vector) and torch.equal(unguided.tokens, null.tokens)
    assert unguided.tokens.shape != cond.tokens.shape or not torch.equal(unguided.tokens, cond.tokens)
    if read_on_the_host:
        with pytest.raises(ValueError, match="caption: captions are dropped on the host"):
            conditioner(read, {"caption": torch.tensor([True, True])})
