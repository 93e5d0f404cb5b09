"""Captions longer than a text encoder reads: which words of them are lost, and how often a warning says so."""

import logging

import pytest
import torch

from ldm.conditioning import Conditioner, Text
from ldm.conditioning.conditions import conditions_of
from ldm.conditioning.text import truncation as cut
from ldm.conditioning.text.tokenizer import train

CAPTIONS = ["a cat above a star on a red background", "a dog", "a big green rocket on a blue background"]


@pytest.fixture
def conditioner() -> Conditioner:
    return Conditioner({"text": Text(train(CAPTIONS, 600), length=6, dim=16)})


@pytest.mark.parametrize(
    ("caption", "lost"),
    [
        ("a dog", None),
        (CAPTIONS[0], "on a red background"),
        ("a dog a dog a dog", "dog"),
        ("a cat  above , a star", ", a star"),
        ("猫が赤い", "が赤い"),  # written without blanks; two of its tokens at least a character
        ("x" * 20, "x" * 16),  # one word of many tokens
        ("a unfamiliarword", "unfamiliarword"),  # cut inside: the word as a whole
    ],
)
def test_the_words_that_are_lost_are_named_as_they_were_written(conditioner, caption, lost):
    found = conditioner.parts["text"].cut([caption])
    assert [one.lost for one in found] == ([] if lost is None else [lost])
    assert all(one.tokens > 6 == one.limit for one in found)


def test_a_cut_prompt_is_reported_each_time_and_its_stand_in_too(conditioner, caplog):
    for _ in range(2):
        caplog.clear()
        conditions_of(conditioner, {"text": [CAPTIONS[0], "a dog"]}, 2, negative=CAPTIONS[2])
        first, second = (record.getMessage() for record in caplog.records)
        assert first == "a prompt has 10 tokens, but the model reads only 6; this part is left out: on a red background"
        assert second.endswith("this part is left out: a blue background")
    caplog.clear()
    conditions_of(conditioner, {"text": ["a dog"]})
    assert caplog.text == ""


@pytest.mark.parametrize(("word", "end"), [("a dog ", "... and 1949 more words"), ("x", "... and 2600 more letters")])
def test_the_first_lost_words_of_a_very_long_prompt_are_named(conditioner, word, end):
    (sentence,) = cut.sentences(conditioner, [word * (1002 if " " in word else 3004)])
    assert len(sentence) < 600 and sentence.endswith(end)


def test_half_letters_are_read_as_the_replacement_character(conditioner, caplog):
    conditions = conditions_of(conditioner, {"text": ["a \ud800 dog " * 9]}, negative="\udcff")
    assert conditions.batch["text"] == ["a \ufffd dog " * 9] and conditions.null["text"] == ["\ufffd"]
    assert "this part is left out" in caplog.text and conditioner(conditions.batch).tokens is not None


def test_many_prompts_are_reported_in_one_line(conditioner):
    (sentence,) = cut.sentences(conditioner, [f"a cat above a star on a {i} background" for i in range(9)] + ["a dog"])
    assert sentence.startswith("9 of 10 prompts are too long; a prompt has") and sentence.endswith("on a 0 background")


def test_captions_of_the_data_are_reported_once_before_training(conditioner, caplog, monkeypatch):
    monkeypatch.setattr(cut, "_reported", set())
    with caplog.at_level(logging.WARNING, "ldm"):
        cut.report(conditioner, CAPTIONS)
        reader = conditioner.reader(seed=0)
        for _ in range(3):
            batch = reader({"text": CAPTIONS, "position": torch.arange(3)}, training=True)
            conditioner(batch, batch["drop"])
        conditions_of(conditioner, {"text": CAPTIONS})  # the run's own look at them
    (record,) = caplog.records
    assert record.getMessage() == (
        f"2 of 3 captions are cut to the 6 tokens that conditioner.text reads; the longest has 10: {CAPTIONS[0]}"
    )
