"""Files of text encoders that don't belong together, or say what can't be read."""

import json
import logging
from pathlib import Path

import pytest

from ldm.common.errors import UserError
from ldm.conditioning import FrozenText
from tests.conditioning.encoders import write_clip

transformers = pytest.importorskip("transformers")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


def edit(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_word_that_the_tokenizer_alone_knows_is_named(clip):
    part = FrozenText(str(clip), "byt5", length=16)
    part(["a cat"])
    part.tokenizer.add_tokens(["<sks>"])
    part(["a cat"])  # does no harm while nobody writes it
    with pytest.raises(UserError, match="<sks>' is token 384, .* has only 384 embeddings.*leave the word out"):
        part(["a <sks> cat"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hidden_act": "quicker_gelu"}, "hidden_act is 'quicker_gelu'"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": "wide"}, "no text encoder .* whose width can be read"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantization_config"),
    ],
)
def test_settings_that_cannot_be_read_are_refused_by_name(clip, settings, says):
    edit(clip, **settings)
    with pytest.raises(UserError, match=says):
        FrozenText(str(clip), "byt5", length=16)(["a cat"])


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_config_that_is_none_gets_a_sentence(clip, text):
    (clip / "config.json").write_text(text)
    with pytest.raises(UserError, match="can't be read as JSON|whose width can be read"):
        FrozenText(str(clip), "byt5", length=16)


def test_layers_that_the_config_leaves_out_are_said(clip, caplog):
    FrozenText(str(clip), "byt5", length=16)(["a cat"])
    assert not [record for record in caplog.records if record.name == "ldm"]
    edit(clip, num_hidden_layers=1)
    with caplog.at_level(logging.WARNING, "ldm"):
        FrozenText(str(clip), "byt5", length=16)(["a cat"])
    assert "fewer layers in its config.json" in caplog.text and "encoder.layers.1." in caplog.text


def test_the_other_side_of_a_model_is_no_layer_left_out(tmp_path, caplog):
    both = transformers.CLIPConfig(
        text_config={
            "vocab_size": 384, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
        projection_dim=8,
    )  # fmt: skip
    transformers.CLIPModel(both).save_pretrained(tmp_path)
    FrozenText(str(tmp_path), "byt5", length=16)(["a cat"])
    assert "fewer layers" not in caplog.text
