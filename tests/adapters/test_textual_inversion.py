"""A new word of the built-in text encoder."""

import pytest
import torch

import ldm
from ldm.adapters import WordEmbedding
from ldm.adapters import textual_inversion as words
from ldm.common.errors import UserError
from tests.adapters.models import equal, small


def generate(model, *prompts):
    return model(list(prompts), output="pt", seed=[0] * len(prompts))


def test_a_word_starts_as_the_one_it_is_made_from_and_all_others_stay(tmp_path):
    model, base = small(), small()
    words.start(model, "<mine>", "a")
    adapter = words.trained(model, "<mine>", {})
    assert [p.shape for p in adapter.parameters()] == [(1, 8)]
    fresh = small()
    assert fresh.load_word(ldm.save(adapter, tmp_path / "word")) == "<mine>"
    assert torch.equal(generate(fresh, "a <mine> on a fish"), generate(base, "a a on a fish"))
    assert torch.equal(generate(fresh, "a cat", ""), generate(base, "a cat", ""))
    with torch.no_grad():
        adapter.row.add_(1)
    changed = small()
    changed.load_word(ldm.save(adapter, tmp_path / "word"))
    assert not torch.equal(generate(changed, "a <mine>"), generate(fresh, "a <mine>"))
    assert torch.equal(generate(changed, "a cat"), generate(base, "a cat"))


def test_a_model_that_learnt_a_word_is_saved_with_it(tmp_path):
    model = small()
    model.load_word(ldm.save(WordEmbedding.of_tensor("猫", torch.ones(1, 8)), tmp_path / "word"))
    loaded = ldm.load(ldm.save(model, tmp_path / "model"))
    torch.testing.assert_close(generate(loaded, "a 猫"), generate(model, "a 猫"), atol=1e-5, rtol=0)
    assert not equal(loaded.state_dict(), small().state_dict())


def test_what_is_no_new_word_is_refused():
    model = small()
    for word, reason in (
        ("two words", "without spaces"),
        ("", "without spaces"),
        ("a", "token of the model already"),
    ):
        with pytest.raises(UserError, match=reason):
            words.start(model, word, None)
    with pytest.raises(UserError, match="no scale"):
        model.put_on(WordEmbedding.of_tensor("<x>", torch.ones(1, 8)), "x", 0.5)
    with pytest.raises(UserError, match="has 4 numbers"):
        model.put_on(WordEmbedding.of_tensor("<x>", torch.ones(1, 4)), "x")


def test_a_word_whose_numbers_arent_finite_is_refused(tmp_path):
    word = WordEmbedding.of_tensor("<it>", torch.full((1, 8), float("inf")))
    ldm.save(word, tmp_path / "word")
    with pytest.raises(UserError, match="row isn't finite"):
        small().load_word(tmp_path / "word")
