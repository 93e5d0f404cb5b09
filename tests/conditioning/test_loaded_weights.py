"""Folders of encoders whose files hold more or less than the encoder, or wrong positions."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.common.errors import UserError
from ldm.conditioning.image_encoders import load_states
from ldm.conditioning.text.encoders import load_encoder, load_tokenizer
from tests.conditioning.encoders import write_clip

transformers = pytest.importorskip("transformers")
TEXT_IDS, IMAGE_IDS = "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"
LAYER = "text_model.encoder.layers.0.self_attn.q_norm.weight"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path, layers=1)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A CLIP for text and images."""
    text = {**SMALL, "vocab_size": 384, "max_position_embeddings": 16, "eos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**SMALL, "image_size": 8, "patch_size": 4}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, without: str = "nothing", **more: torch.Tensor) -> None:
    """Rewrites the weights in a folder without the names that contain `without`, and with `more`."""
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if without not in name}
    save_file({**kept, **more}, file, {"format": "pt"})


def positions(n: int, wrong: int | None = None) -> torch.Tensor:
    ids = torch.arange(n)[None].half()
    if wrong is not None:
        ids[0, wrong] -= 1
    return ids


@pytest.mark.parametrize("layout", ["plain", "fp16", "bin"])
@pytest.mark.parametrize(("wrong", "said"), [(9, True), (None, False)])
def test_wrong_positions_in_a_folder_are_reported(layout, wrong, said, clip, caplog):
    change(clip, **{TEXT_IDS: positions(16, wrong)})
    file = clip / "model.safetensors"
    if layout == "fp16":
        file.rename(clip / "model.fp16.safetensors")
    if layout == "bin":
        torch.save(load_file(file), clip / "pytorch_model.bin")
        file.unlink()
    encoder = load_encoder(str(clip))
    assert ("damaged at 1 of 16 positions (the first is 9)" in caplog.text) is said
    used = next(buffer for name, buffer in encoder.named_buffers() if name.endswith("position_ids"))
    assert torch.equal(used, torch.arange(16)[None])


def test_positions_of_the_other_side_are_no_matter(both, caplog):
    change(both, **{TEXT_IDS: positions(16), IMAGE_IDS: positions(5, 2)})
    load_encoder(str(both))
    assert not [record for record in caplog.records if record.name == "ldm"]
    load_states(str(both), None)
    assert "the vision encoder" in caplog.text and "damaged at 1 of 5 positions" in caplog.text


@pytest.mark.parametrize("name", ["text_model.foo.bar", LAYER])
def test_a_weight_that_the_class_does_not_have_is_refused(name, clip):
    change(clip, **{name: torch.ones(2)})
    with pytest.raises(UserError, match=f"a CLIPTextModel has no .*{name.removeprefix('text_model.')}"):
        load_encoder(str(clip))


def test_a_weight_that_no_declared_class_has_is_named(both, caplog):
    change(both, **{"foo.bar": torch.ones(2), LAYER: torch.ones(2)})
    with caplog.at_level(logging.WARNING, "ldm"):
        load_encoder(str(both))
        load_states(str(both), None)
    text, image = [record.getMessage() for record in caplog.records if record.name == "ldm"]
    assert "no CLIPTextModel or CLIPModel has" in text and "no CLIPVisionModel or CLIPModel has" in image
    assert all("foo.bar" in said and "q_norm" in said and "logit_scale" not in said for said in (text, image))


def test_a_vision_encoder_that_is_not_whole_is_refused(both):
    change(both, without="vision_model.encoder.layers.0.mlp.fc1")
    load_encoder(str(both))
    with pytest.raises(UserError, match="vision encoder .* isn't whole: .*fc1.bias, .*fc1.weight is missing"):
        load_states(str(both), None)


def test_weights_of_another_shape_or_not_finite_are_named(both):
    change(both, **{"vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(3)})
    with pytest.raises(UserError, match=r"fc1.bias is \(3,\), not \(16,\)"):
        load_states(str(both), None)
    change(both, **{"vision_model.encoder.layers.0.mlp.fc1.bias": torch.full((16,), torch.nan)})
    with pytest.raises(UserError, match="fc1.bias isn't finite"):
        load_states(str(both), None)


def test_a_pooler_that_the_files_lack_is_not_filled_at_random(tmp_path):
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    images = torch.rand(1, 3, 8, 8)
    (_, one), (_, other) = (load_states(str(tmp_path), None) for _ in range(2))
    with torch.no_grad():
        assert torch.equal(one(images), other(images))
        assert torch.allclose(one(images)[:, 0], one(images)[:, 1:].mean(1), atol=1e-6)


def test_a_tokenizer_without_words_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(UserError, match="knows no words.*vocabulary"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.json").write_text('{"a":')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(str(tmp_path))
