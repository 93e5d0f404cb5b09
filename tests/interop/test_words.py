"""New words of frozen CLIP encoders: diffusers' and A1111's files, read as diffusers reads them, and written."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.adapters import WordEmbedding
from ldm.adapters import textual_inversion as words
from ldm.common.errors import UserError
from tests.interop.models import diffusers, transformers
from tests.interop.pipelines import frozen_text, joined_text, random_model

PROMPTS = ["a <mine> on a red mat", "<mine>", "two <mine>, and a <MINE>!", "no word", "a <mine> that is cut"]


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


class Pipeline(diffusers.loaders.TextualInversionLoaderMixin):
    """diffusers' loader, and its encoding of prompts, around one text encoder."""

    hf_device_map = None
    components: dict = {}

    def __init__(self, folder, suffix="", cls="CLIPTextModel"):
        self.text_encoder = getattr(transformers, cls).from_pretrained(folder / f"text_encoder{suffix}")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")

    @torch.no_grad()
    def encode(self, prompts):
        texts = self.maybe_convert_prompt(list(prompts), self.tokenizer)
        batch = self.tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        return self.text_encoder(batch.input_ids, output_hidden_states=True)


def write_file(folder, kind: str, embedding: torch.Tensor):
    """A file with the word <mine>, as its tool writes it."""
    folder.mkdir(exist_ok=True)
    file = folder / {"diffusers": "learned_embeds.safetensors", "bin": "learned_embeds.bin"}.get(kind, f"mine.{kind}")
    if kind == "diffusers":
        save_file({"<mine>": embedding}, file)
    elif kind == "bin":
        torch.save({"<mine>": embedding}, file)
    elif kind == "pt":
        params = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(embedding)}}
        torch.save({**params, "name": "<mine>", "step": 5, "sd_checkpoint": None}, file)
    else:
        save_file({"emb_params": embedding}, file)
    return file


@pytest.mark.parametrize("kind", ["diffusers", "bin", "pt", "safetensors"])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 16)])
def test_states_are_those_of_diffusers_with_the_same_file(kind, shape, text_folder, tmp_path):
    file = write_file(tmp_path / "word", kind, rows(3, 16)[: shape[0] if len(shape) > 1 else 1].reshape(shape))
    theirs = Pipeline(text_folder)
    theirs.load_textual_inversion(str(file.parent), weight_name=file.name, token="<mine>")
    model = random_model({"text": frozen_text(text_folder)})
    before = model.conditioner.parts["text"](PROMPTS).tokens
    assert model.load_word(file, word="<mine>") == "<mine>"
    ours = model.conditioner.parts["text"](PROMPTS).tokens
    prompts = [prompt.replace("<MINE>", "<mine>") for prompt in PROMPTS]  # diffusers expands only this spelling
    torch.testing.assert_close(ours, theirs.encode(prompts).last_hidden_state, atol=1e-6, rtol=1e-5)
    assert torch.equal(ours[3], before[3]) and not torch.equal(ours[0], before[0])


def test_weighted_prompts_have_words_too(text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})
    model.load_word(write_file(tmp_path, "diffusers", rows(2, 16)))
    part = model.conditioner.parts["text"]
    plain, weighted = part(["a <mine>"]).tokens, part(["a (<mine>:1.0)"]).tokens
    torch.testing.assert_close(weighted, plain)
    assert part.chunked(["a (<mine>:1.5)", "a <mine>"]) == {"a (<mine>:1.5)": 1}
    assert part(["<mine> " * 9 + "BREAK"]).tokens.shape[1] == 2 * 16  # 18 tokens and two marks for each chunk
    assert [cut.caption for cut in part.cut(["<mine> " * 9, "<mine>"])] == ["<mine> " * 9]


def test_both_encoders_of_sdxl_have_the_states_of_diffusers(two_folder, tmp_path):
    save_file({"clip_l": rows(2, 16), "clip_g": rows(2, 24, seed=1)}, tmp_path / "mine.safetensors")
    model = random_model({"text": joined_text(two_folder)})
    assert model.load_word(tmp_path / "mine.safetensors", word="<mine>") == "<mine>"
    cond = model.conditioner.parts["text"](PROMPTS[:2])
    states = []
    for suffix, cls, key in (("", "CLIPTextModel", "clip_l"), ("_2", "CLIPTextModelWithProjection", "clip_g")):
        pipe = Pipeline(two_folder, suffix, cls)
        pipe.load_textual_inversion(load_file(tmp_path / "mine.safetensors")[key], token="<mine>")
        states.append(pipe.encode(PROMPTS[:2]))
    expected = torch.cat([output.hidden_states[-2] for output in states], 2)
    torch.testing.assert_close(cond.tokens, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cond.vector, states[1].text_embeds, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("to", "name"), [("diffusers", "learned_embeds.bin"), ("a1111", "x.pt"), ("a1111", "folder")])
def test_words_are_written_as_others_read_them(to, name, text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})
    model.put_on(WordEmbedding.of_tensor("<mine>", rows(2, 16)), "<mine>")
    file = model.export_word(tmp_path / name, "<mine>", to)
    theirs = Pipeline(text_folder)
    theirs.load_textual_inversion(str(file.parent), weight_name=file.name, token="<mine>")
    expected = theirs.encode(PROMPTS[:2]).last_hidden_state
    torch.testing.assert_close(model.conditioner.parts["text"](PROMPTS[:2]).tokens, expected, atol=1e-6, rtol=1e-5)
    assert file.name == ("mine.safetensors" if name == "folder" else name)
    again = random_model({"text": frozen_text(text_folder)})
    again.load_word(file, word="<mine>")
    assert torch.equal(*(m.conditioner.parts["text"].word_rows[0] for m in (model, again)))


def test_both_words_of_sdxl_are_written_and_read(two_folder, tmp_path):
    model = random_model({"text": joined_text(two_folder)})
    model.put_on(WordEmbedding.of_tensor("<mine>", rows(1, 16), row_2=rows(2, 24)), "<mine>")
    entries = load_file(model.export_word(tmp_path / "mine.safetensors", "<mine>"))
    assert torch.equal(entries["clip_l"], rows(1, 16)) and torch.equal(entries["clip_g"], rows(2, 24))
    again = ldm.load(ldm.save(model, tmp_path / "model"))
    torch.testing.assert_close(
        again.conditioner.parts["text"](PROMPTS).tokens, model.conditioner.parts["text"](PROMPTS).tokens
    )


def test_a_model_is_saved_with_its_words_and_the_encoder_stays_as_it_is(text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})
    encoder = model.conditioner.parts["text"].encoder
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model.load_word(write_file(tmp_path, "pt", rows(2, 16)))
    expected = model("a <mine>", output="pt", steps=2)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())
    other = random_model({"text": frozen_text(text_folder)})
    other.conditioner.parts["text"].hold(model.conditioner.parts["text"].tokenizer, encoder)  # shared, without the word
    assert not torch.equal(other("a <mine>", output="pt", steps=2), expected)
    torch.testing.assert_close(
        ldm.load(ldm.save(model, tmp_path / "model"))("a <mine>", output="pt", steps=2), expected
    )
    model.export(tmp_path / "whole", "ldm")
    torch.testing.assert_close(ldm.load(tmp_path / "whole")("a <mine>", output="pt", steps=2), expected)
    with pytest.raises(UserError, match=r"<mine> would be lost .*export_word"):
        model.export(tmp_path / "diffusers")


def test_a_word_starts_as_the_one_it_is_made_from_and_it_alone_learns(text_folder):
    model = random_model({"text": frozen_text(text_folder)}).requires_grad_(False)
    part = model.conditioner.parts["text"]
    words.start(model, "<mine>", "cat", vectors=3)
    assert torch.equal(part(["a <mine>"]).tokens, part(["a cat"]).tokens)  # c, a, t: three tokens of this tokenizer
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["conditioner.parts.text.word_rows.0"]
    part(["a <mine>"], torch.zeros(1, dtype=torch.bool)).tokens.square().sum().backward()
    assert part.word_rows[0].grad.abs().min() > 0
    assert all(p.grad is None for p in part.encoder.parameters())
    adapter = words.trained(model, "<mine>", {})
    assert words.names_in_model(model) == {"row": "conditioner.parts.text.word_rows.0"}
    assert adapter.row.shape == (3, 16) and adapter.row.data_ptr() == part.word_rows[0].data_ptr()


def test_what_is_no_new_word_is_refused(text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})
    with pytest.raises(UserError, match="has 24 numbers, those of this model 16"):
        model.load_word(write_file(tmp_path / "wide", "diffusers", rows(1, 24)))
    save_file({"clip_l": rows(1, 16), "clip_g": rows(1, 24)}, tmp_path / "xl.safetensors")
    with pytest.raises(UserError, match="has 16 and 24 numbers, those of this model 16"):
        model.load_word(tmp_path / "xl.safetensors")
    file = write_file(tmp_path / "word", "diffusers", rows(2, 16))
    model.load_word(file)
    for word in ("<mine>", "<mine>_1", "<MINE>", "c</w>"):
        with pytest.raises(UserError, match="is a token of the model already|there is an adapter '<mine>' on"):
            model.load_word(file, word=word)
    with pytest.raises(UserError, match="without spaces, brackets"):
        model.load_word(file, word="(x)")
    with pytest.raises(UserError, match="no word '<mime>'. Did you mean '<mine>'"):
        model.export_word(tmp_path, "<mime>")
    assert model("a <unknown>", steps=1)  # split as before


def test_files_that_hold_no_word_are_refused(text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"<mine>": Code()}, tmp_path / "code.pt")
    for name in ("code.pt", "broken.safetensors"):
        (tmp_path / "broken.safetensors").write_bytes(b"<html>")
        with pytest.raises(UserError, match="can't be read without running its code, or is damaged"):
            model.load_word(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    for name, content, reason in (
        ("two", {"<a>": rows(1, 16), "<b>": rows(1, 16)}, "its entries are <a>, <b>"),
        ("half", {"clip_l": rows(1, 16)}, "has no clip_g"),
        ("onetrainer", {"emb_params": rows(1, 16), "emb_params_out": rows(1, 16)}, "holds emb_params_out too"),
        ("onetrainer_xl", {name: rows(1, 16) for name in ("clip_l", "clip_g", "clip_l_out")}, "holds clip_l_out too"),
        ("sd3", {name: rows(1, 16) for name in ("clip_l", "clip_g", "t5")}, "holds t5 too"),
        ("cube", {"<a>": torch.ones(1, 1, 16)}, r"holds \(1, 1, 16\), where \(vectors, width\) belongs"),
        ("whole", {"<a>": torch.ones(1, 16, dtype=torch.int64)}, "where .* belongs"),
        ("nan", {"<a>": torch.full((1, 16), float("nan"))}, "isn't finite"),
    ):
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=reason):
            model.load_word(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="embedding of a word .*load_word"):
        ldm.load(write_file(tmp_path / "word", "safetensors", rows(1, 16)))
