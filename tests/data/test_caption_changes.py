"""Captions that change at each visit: which choices there are, how often, and by the position alone."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.data.caption_changes import CaptionChanges, changing, prepare_captions
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.table import Table
from ldm.images import Preprocess

TAGS = "sks dog, red, on grass, sitting"


def visits(changes: CaptionChanges, caption: str, n: int = 600) -> list[str]:
    return changes([caption] * n, torch.arange(n))


def table(captions: list) -> Table:
    n = len(captions)
    return Table(np.zeros((n, 1, 4, 4), np.uint8), {"text": captions}, Preprocess(1, 4, 4), key="captions")


def test_tags_are_shuffled_behind_those_that_stay():
    found = Counter(visits(CaptionChanges(shuffle=True, keep_first=1), TAGS))
    assert len(found) == 6 and all(caption.startswith("sks dog, ") for caption in found)
    assert min(found.values()) > 60  # of 100 expected
    assert all(sorted(caption.split(", ")) == sorted(TAGS.split(", ")) for caption in found)


def test_tags_are_left_out_with_their_probability_in_order():
    found = visits(CaptionChanges(drop=0.25, keep_first=1), TAGS)
    kept = Counter(tag for caption in found for tag in caption.split(", "))
    assert kept["sks dog"] == 600 and all(400 < kept[tag] < 500 for tag in ("red", "on grass", "sitting"))
    order = TAGS.split(", ")
    assert all(caption.split(", ") == [tag for tag in order if tag in caption] for caption in found)
    assert visits(CaptionChanges(drop=1.0), TAGS, 2) == ["", ""]


def test_another_separator_and_empty_tags():
    assert CaptionChanges(separator="|").parts(" a | | b, c|") == ["a", "b, c"]
    assert visits(CaptionChanges(shuffle=True), "one, ", 1) == ["one"]


def test_wildcards_choose_evenly_and_braces_can_be_escaped():
    changes = CaptionChanges(wildcards=True)
    found = Counter(visits(changes, "a {red|dark blue|} {dog|cat}"))
    assert set(found) == {f"a {colour} {kind}" for colour in ("red", "dark blue", "") for kind in ("dog", "cat")}
    assert min(found.values()) > 60
    for caption, wanted in [
        ("{{a|b}}", "{a|b}"),
        ("f(x) = {{x}}", "f(x) = {x}"),
        ("{only}", "only"),
        ("open { and } alone", "open  and  alone"),
        ("a { b", "a { b"),
        ("a | b", "a | b"),
        ("", ""),
    ]:
        assert visits(changes, caption, 1) == [wanted]


def test_a_wildcard_is_chosen_before_tags_are_divided():
    found = set(visits(CaptionChanges(wildcards=True, drop=0.0, shuffle=True), "{a, b|c}", 50))
    assert found == {"a, b", "b, a", "c"}


def test_choices_depend_on_seed_and_position_alone():
    changes = CaptionChanges(seed=3, shuffle=True, drop=0.3, wildcards=True)
    captions = [TAGS, "{a|b|c}, x", "alone", "{1|2}{3|4}, " + ", ".join("abcdefgh")]
    together = changes(captions, torch.arange(100, 104))
    alone = [changes([caption], torch.tensor([100 + i]))[0] for i, caption in enumerate(captions)]
    assert together == alone
    assert pickle.loads(pickle.dumps(changes))(captions, torch.arange(100, 104)) == together
    assert CaptionChanges(4, shuffle=True, drop=0.3, wildcards=True)(captions, torch.arange(100, 104)) != together


def test_only_training_batches_change():
    read = changing(lambda batch, training: batch, CaptionChanges(drop=1.0))
    batch = {"text": [TAGS], "position": torch.arange(1)}
    assert read(batch, True)["text"] == [""] and read(batch, False)["text"] == [TAGS] and batch["text"] == [TAGS]


def test_validation_has_one_alternative_of_each(capsys):
    config = {"seed": 0, "captions": {"wildcards": True}}
    many = ["a {red|blue} cat", ["{x|y}", "z"]] * 10
    changes, (train, val) = prepare_captions((table(many), table(many)), config)
    assert changes and train.columns["text"] == many
    rows = list(val.columns["text"])
    assert set(rows[::2]) == {"a red cat", "a blue cat"} and all(row[0] in "xy" and row[1] == "z" for row in rows[1::2])
    assert rows == list(pickle.loads(pickle.dumps(val.columns["text"])))
    assert "wildcards in 20 of 30 captions" in capsys.readouterr().out
    buckets = changes.fixed(Buckets.of([table(many), table(many[:4])], "both"))
    assert all("{" not in str(row) for part in (buckets, *buckets.buckets) for row in part.columns["text"])


def test_what_would_be_silent_is_said_or_refused(capsys):
    plain = (table(["a {b|c} d"]), table(["e"]))
    assert prepare_captions(plain, {"seed": 0}) == (None, plain)
    assert "1 of 1 captions hold {a|b}, which is read as text: captions.wildcards=true" in capsys.readouterr().out
    prepare_captions((table(["a { b", "c"]), table(["e"])), {"seed": 0, "captions": {"wildcards": True}})
    assert "wildcards in 0 of 2 captions, an unmatched brace, read as text, in 1" in capsys.readouterr().out
    for options, message in [
        ({"keep_first": 1}, "captions.shuffle=true"),
        ({"shuffle": True, "separator": " "}, "separator is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            CaptionChanges.of({"seed": 0, "captions": options})
    none = Table(np.zeros((1, 1, 4, 4), np.uint8), {}, Preprocess(1, 4, 4), key="none")
    with pytest.raises(UserError, match="these data have none"):
        prepare_captions((none, none), {"seed": 0, "captions": {"shuffle": True}})
