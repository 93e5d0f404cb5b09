"""Captions: no byte is lost, padding changes nothing, each sample is dropped by itself."""

import copy

import numpy as np
import pytest
import torch

from ldm.common.registry import build, spec_of
from ldm.conditioning import Text
from ldm.conditioning.text import tokenizer
from ldm.data import Table
from ldm.images import Preprocess

ENGLISH = ["a cat above a rocket", "a dog", "a fish on a blue background"]
FOREIGN = [
    "一只猫在火箭上",
    "قطة فوق صاروخ",
    "🐈‍⬛ + 🚀 = ❤️",
    "tab\tand\nline",
    "it's 50% <b>&amp;</b> \\",
    "Zoë, naïve",
    " a  b ",
]


@pytest.fixture(scope="module")
def json() -> str:
    return tokenizer.train(ENGLISH, 300)


@pytest.fixture(scope="module")
def text(json) -> Text:
    torch.manual_seed(0)
    part = Text(json, length=24, dim=16, depth=2, heads=2, pooled=True).eval()
    with torch.no_grad():
        for parameter in part.parameters():  # no block is the identity any more
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


def table(captions) -> Table:
    preprocess = Preprocess(1, 4, 4)
    return Table(np.zeros((len(captions), 1, 4, 4), np.uint8), {"text": captions}, preprocess, "key")


@pytest.mark.parametrize("caption", FOREIGN)
def test_no_byte_is_lost_in_a_language_it_never_saw(json, caption):
    ids, mask = tokenizer.encode(tokenizer.load(json), [caption], 200)
    decoded = tokenizer.load(json).decode(ids[0, mask[0]].tolist())
    assert decoded.removeprefix(" ") == caption.removeprefix(" ")


def test_every_caption_ends_so_the_empty_one_has_a_token_too(json):
    bpe = tokenizer.load(json)
    ids, mask = tokenizer.encode(bpe, ["", "a cat"], 10)
    assert ids[0, 0] == bpe.token_to_id(tokenizer.END)
    assert mask.tolist() == [[True] + [False] * (mask.shape[1] - 1), [True] * mask.shape[1]]
    assert ids[1, -1] == bpe.token_to_id(tokenizer.END)


def test_the_words_of_the_captions_are_learnt(json):
    counts = [len(e.ids) for e in tokenizer.load(json).encode_batch(["a cat above", "q zxj vwwqk"])]
    assert counts[0] <= 4 < counts[1]


def test_a_prompt_cannot_write_the_end_token(json):
    bpe = tokenizer.load(json)
    ids, _ = tokenizer.encode(bpe, [f"a {tokenizer.END} cat"], 20)
    assert (ids == bpe.token_to_id(tokenizer.END)).sum() == 1
    assert bpe.decode(ids[0].tolist()) == f" a {tokenizer.END} cat"


def test_a_long_caption_is_cut(json):
    ids, mask = tokenizer.encode(tokenizer.load(json), ["a cat", "a dog " * 20], 8)
    assert ids.shape == (2, 8) and ids[1, -1] == tokenizer.load(json).token_to_id(tokenizer.END)
    assert tokenizer.load(json).decode(ids[1, :-1].tolist()) == " a dog a dog a dog a"


def test_training_the_tokenizer_gives_the_same_twice_whatever_the_order(json):
    assert tokenizer.train(ENGLISH[::-1] * 2, 300) == json


def test_options_are_read_off_the_captions_all_of_an_image():
    derived = Text.derive(table([["a cat", "a very long caption about a cat"], ["a dog"]]), {"vocab_size": 280})
    bpe = tokenizer.load(derived["tokenizer_json"])
    longest = len(bpe.encode("a very long caption about a cat").ids)
    assert bpe.get_vocab_size() <= 280
    assert derived["length"] % 8 == 0 and derived["length"] >= 1.2 * longest - 8
    assert Text.derive(table(["a"]), {"length": 5})["length"] == 5


@torch.no_grad()
def test_the_rest_of_the_batch_never_changes_a_caption(text):
    alone = text(["a cat"])
    batch = text(["a fish on a blue background", "a cat", ""])
    length = alone.tokens.shape[1]
    assert batch.tokens.shape[1] > length
    assert batch.mask.sum(1)[1] == length
    torch.testing.assert_close(batch.tokens[1:2, :length], alone.tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(batch.vector[1:2], alone.vector, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_samples_are_dropped_one_by_one(text):
    captions = ["a cat", "a dog", "a fish"]
    dropped = text(captions, torch.tensor([False, True, False]))
    wanted = text(["a cat", "", "a fish"])
    assert torch.equal(dropped.tokens, wanted.tokens) and torch.equal(dropped.mask, wanted.mask)
    assert text.null_values(2) == ["", ""]


def test_it_is_rebuilt_from_its_spec_with_the_tokenizer_inside(text):
    again = build(spec_of(text)).eval()
    again.load_state_dict(text.state_dict())
    with torch.no_grad():
        assert torch.equal(again(["a 猫"]).tokens, text(["a 猫"]).tokens)
        assert torch.equal(copy.deepcopy(text)(["a 猫"]).tokens, text(["a 猫"]).tokens)


def test_pooling_is_the_mean_over_real_tokens(text):
    with torch.no_grad():
        cond = text(["a cat", "a fish on a blue background"])
    for row in range(2):
        torch.testing.assert_close(cond.vector[row], cond.tokens[row, cond.mask[row]].mean(0))
