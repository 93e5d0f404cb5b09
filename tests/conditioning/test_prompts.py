"""Weights in prompts and prompts in chunks, for frozen CLIP encoders, one and SDXL's two."""

import pytest
import torch

from ldm.conditioning import Conditioner, FrozenText, JoinedText
from ldm.conditioning.conditions import conditions_of
from ldm.conditioning.text import prompts
from tests.conditioning.encoders import write_t5
from tests.interop.models import clip_config, randomised, transformers, write_tokenizer, write_two_encoders

PLAIN = "abcd efgh ijkl mnop qrst uv"
LONG = f"{PLAIN} BREAK"  # a token a letter: 22, where a chunk has room for 14


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    randomised(transformers.CLIPTextModel(clip_config())).save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def part(clip):
    return FrozenText(str(clip / "text_encoder"), str(clip / "tokenizer"), masked=False, pooled=True)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", None),
        ("a (cat), [dog] (b) )c(", None),
        ("a :1.2) b", None),
        ("a (cat:1.2) b", [("a ", 1.0), ("cat", 1.2), (" b", 1.0)]),
        ("((a:2) b:.5)", [("a", 1.0), (" b", 0.5)]),
        ("(a (b) c: 3 )", [("a (b) c", 3.0)]),
        ("a BREAK b", [("a ", 1.0), ("BREAK", 1.0), (" b", 1.0)]),
        ("(a BREAK b:2) BREAK", [("a ", 2.0), ("BREAK", 1.0), (" b", 2.0), ("BREAK", 1.0)]),
        ("BREAKFAST break", None),
        (r"\(a:1.2\) b", [("(a:1.2) b", 1.0)]),
        (r"(\(a\):0)", [("(a)", 0.0)]),
        ("(a:b:2)", [("a:b", 2.0)]),
    ],
)
def test_brackets_with_a_number_weigh_and_others_are_text(prompt, pieces):
    assert prompts.parse(prompt) == pieces


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_without_the_syntax_have_the_states_of_captions_bit_for_bit(masked, clip):
    part = FrozenText(str(clip / "text_encoder"), str(clip / "tokenizer"), masked=masked, pooled=True)
    given = ["a cat", "", "(a) [b] c:2", ":1.2)"]
    captions, read = part.encode(given), part(given)
    assert torch.equal(read.tokens, captions.tokens) and torch.equal(read.vector, captions.vector)
    assert read.mask is None if not masked else torch.equal(read.mask, captions.mask)


def test_weights_of_1_change_nothing_and_others_are_the_closed_form(part):
    plain = part.encode(["a cat b"])
    torch.testing.assert_close(part(["a (cat:1) b"]).tokens, plain.tokens, atol=1e-6, rtol=0)
    weighted = part(["a (cat:1.5) b"])
    factors = torch.ones(16)
    factors[2:5] = 1.5  # after the mark of begin and "a"
    wanted = plain.tokens * factors[:, None]
    wanted = wanted * plain.tokens.mean() / wanted.mean()
    torch.testing.assert_close(weighted.tokens, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weighted.vector, plain.vector, atol=1e-6, rtol=0)
    assert (weighted.tokens - plain.tokens).abs().max() > 0.01


def test_an_escaped_bracket_is_the_bracket(part):
    torch.testing.assert_close(part([r"\(a:2\)"]).tokens, part.encode(["(a:2)"]).tokens, atol=1e-6, rtol=0)
    assert not torch.allclose(part(["(a:2)"]).tokens, part.encode(["(a:2)"]).tokens, atol=1e-3)


def test_a_long_prompt_is_its_chunks_one_after_the_other(part):
    letters = PLAIN.replace(" ", "")
    tokens = part.tokenizer(PLAIN, add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(letters) == 22
    read = part([LONG])
    assert read.tokens.shape == (1, 32, 16) and read.mask is None
    ids = torch.tensor([[512, *tokens[:14], 513], [512, *tokens[14:], 513, *[part.tokenizer.pad_token_id] * 6]])
    with torch.no_grad():
        chunks = part.encoder(input_ids=ids)
    torch.testing.assert_close(read.tokens, chunks.last_hidden_state.reshape(1, 32, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.vector, chunks.pooler_output[:1], atol=1e-5, rtol=0)
    weighted = part([f"(abcd:1.4){LONG[4:]}"]).tokens
    assert not torch.allclose(weighted[:, :16], read.tokens[:, :16], atol=1e-3)
    torch.testing.assert_close(weighted[:, 16:], read.tokens[:, 16:], atol=1e-5, rtol=0)
    assert part.cut_prompts([LONG]) == []
    halves = part(["abcd BREAK efgh"]).tokens
    torch.testing.assert_close(halves[:, 16:], part.encode(["efgh"]).tokens, atol=1e-5, rtol=0)


def test_in_a_batch_shorter_prompts_are_masked_where_others_have_further_chunks(part):
    both = part(["a cat", LONG])
    assert both.tokens.shape == (2, 32, 16) and both.mask.sum(1).tolist() == [16, 32]
    torch.testing.assert_close(both.tokens[:1, :16], part.encode(["a cat"]).tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.tokens[1:], part([LONG]).tokens, atol=1e-5, rtol=0)


def test_both_encoders_of_sdxl_weigh_and_chunk(tmp_path):
    root = write_two_encoders(tmp_path)
    parts = [
        FrozenText(str(root / f"text_encoder{s}"), str(root / f"tokenizer{s}"), masked=False, pooled=bool(s), length=16)
        for s in ("", "_2")
    ]
    joined = JoinedText(parts)
    for prompt in ("a (cat:1.3) b", LONG):
        got = joined([prompt])
        alone = [part([prompt]) for part in parts]
        torch.testing.assert_close(got.tokens, torch.cat([one.tokens for one in alone], 2), atol=1e-5, rtol=0)
    assert got.tokens.shape == (1, 32, 40) and joined.cut_prompts([LONG]) == []
    pair = joined([("a", LONG)])  # a prompt for each encoder: both have as many chunks
    torch.testing.assert_close(pair.tokens[:, :16, :16], parts[0].encode(["a"]).tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(pair.tokens[:, 16:, :16], parts[0].encode([""]).tokens, atol=1e-5, rtol=0)
    mixed = joined(["a cat", LONG])
    assert mixed.mask.sum(1).tolist() == [16, 32]
    assert torch.equal(joined(["a cat"]).tokens, torch.cat([part.encode(["a cat"]).tokens for part in parts], 2))


def test_a_prompt_that_is_cut_has_a_warning_that_says_how_it_wouldnt_be(part, caplog):
    conditions_of(Conditioner({"text": part}), {"text": [LONG]})
    assert caplog.text == ""
    conditions_of(Conditioner({"text": part}), {"text": [PLAIN]})
    assert "this part is left out: mnop qrst uv; a prompt that ends with BREAK is read in chunks" in caplog.text


def test_encoders_of_other_kinds_read_brackets_as_text(tmp_path):
    part = FrozenText(str(write_t5(tmp_path)), "byt5", length=12, masked=False)
    given = ["(cat:1.2)", "a very long caption"]
    assert torch.equal(part(given).tokens, part.encode(given).tokens)
    assert len(part.cut_prompts(given)) == 1


def test_prompts_without_the_syntax_are_cut_as_before_and_captions_in_training_have_none(part):
    assert torch.equal(part([PLAIN]).tokens, part.encode([PLAIN]).tokens)
    drop = torch.tensor([False])
    for caption in ("a (cat:1.5) b", LONG):
        assert torch.equal(part([caption], drop).tokens, part.encode([caption]).tokens)
        ready = Conditioner({"text": part})({"ready": {"text": [caption]}})
        assert torch.equal(ready.tokens, part.encode([caption]).tokens)
    both = part([PLAIN, "a (cat:1.5) b"])
    wanted = part([f"{PLAIN} BREAK"]).tokens[:, :16]  # the same 14 tokens: others end a cut caption with a whole word
    torch.testing.assert_close(both.tokens[:1], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.tokens[:1], part.encode([PLAIN]).tokens, atol=1e-5, rtol=0)
