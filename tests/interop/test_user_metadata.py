"""Notes beside a file or in its metadata that aren't applied: reported in one line, never ignored in silence."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.adapters import adapter as base
from ldm.adapters import lora_layers as layers
from ldm.common.errors import UserError
from ldm.diffusion import EDM, Eps, Flow, Schedule, V
from ldm.interop.files import user_metadata
from ldm.interop.lora import base_differences
from ldm.interop.lora.tensor_names import split
from tests.adapters.models import small

A1111 = {
    "description": "",
    "sd version": "SD1",
    "activation text": "zk cat",
    "preferred weight": 0.6,
    "notes": "n\x1b[2J",
}


def warning_of(folder, given, caplog, scale=1.0, name="a.json"):
    (folder / name).write_text(given if isinstance(given, str) else json.dumps(given))
    caplog.clear()
    user_metadata.warn(folder / "a.safetensors", scale)
    return [record.getMessage() for record in caplog.records]


def test_what_a1111_keeps_of_a_lora_is_reported_in_one_line_with_what_to_do(tmp_path, caplog):
    [line] = warning_of(tmp_path, A1111, caplog)
    assert "preferred weight '0.6', activation text 'zk cat', sd version 'SD1', notes 'n\\\\x1b[2J'" in line
    assert line.endswith(
        "none of it is applied automatically: load it at scale 0.6, write the activation text into the prompt"
    )
    [line] = warning_of(tmp_path, A1111, caplog, scale=0.6)
    assert "weight" not in line and "scale" not in line and "zk cat" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vae": "a.vae.pt", "preferred weight": 0}, "vae 'a.vae.pt'; none of it is applied automatically"),
        ({"negative text": "blurred"}, "write the negative text into the negative prompt"),
        ({"colour": 3}, "colour '3'"),
        ("[", "the files beside it aren't used"),
        ("[1]", "the files beside it aren't used"),
        ("\udcff", "the files beside it aren't used"),
    ],
)
def test_other_fields_and_damaged_files_are_reported_too(given, message, tmp_path, caplog):
    if given == "\udcff":
        (tmp_path / "a.json").write_bytes(b"\xff")
        user_metadata.warn(tmp_path / "a.safetensors", 1.0)
        assert message in caplog.text
        return
    [line] = warning_of(tmp_path, given, caplog)
    assert message in line


def test_empty_fields_and_no_file_say_nothing(tmp_path, caplog):
    user_metadata.warn(tmp_path / "a.safetensors")
    assert not warning_of(tmp_path, {"activation text": "", "preferred weight": 0.0, "sd version": "Unknown"}, caplog)
    assert not caplog.text


def test_civitais_words_count_where_a1111_has_none(tmp_path, caplog):
    [line] = warning_of(tmp_path, {"id": 1, "trainedWords": ["zk", "cat"]}, caplog, name="a.civitai.info")
    assert (
        "activation text 'zk, cat'" in line
        and "id" not in line.split("files beside it recommend")[1].split(";")[0].split()
    )
    [line] = warning_of(tmp_path, {"activation text": "other"}, caplog)
    assert "activation text 'other'" in line and "zk" not in line


def test_lora_managers_file_and_a_loras_own_metadata_are_reported(tmp_path, caplog):
    given = {"usage_tips": '{"strength": 0.6, "clip_skip": 2}', "base_model": "SD 1.5", "file_size": 3, "notes": ""}
    given["civitai"] = {"trainedWords": ["zk"]}
    [line] = warning_of(tmp_path, given, caplog, name="a.metadata.json")
    assert "preferred weight '0.6'" in line and "clip_skip '2'" in line and "load it at scale 0.6" in line
    assert "zk" in line and "SD 1.5" in line and "file_size" not in line
    [line] = warning_of(tmp_path, {"recommended_weight": 0.7}, caplog, name="a.metadata.json")
    assert "preferred weight '0.7'" in line
    [line] = warning_of(tmp_path, {"usage_tips": "[1]"}, caplog, name="a.metadata.json")
    assert "the files beside it aren't used" in line
    caplog.clear()
    user_metadata.warn(tmp_path / "b.safetensors", 1.0, {"recommended_weight": "0.7"})
    assert "load it at scale 0.7" in caplog.text
    caplog.clear()
    user_metadata.warn(tmp_path / "b.safetensors", 0.7, {"recommended_weight": "0.7"})
    assert not caplog.text


def test_a_lora_one_level_below_is_named(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"one level below: name .*unet/adapter_model.safetensors"):
        base.read(tmp_path)


ZERO = V(Schedule(zero_terminal_snr=True))


@pytest.mark.parametrize(
    ("metadata", "on", "message"),
    [
        ({"ss_zero_terminal_snr": "True"}, Eps(), "the base's schedule doesn't end at zero SNR"),
        ({"ss_zero_terminal_snr": "False"}, ZERO, "the base's schedule ends at zero SNR"),
        ({"ss_zero_terminal_snr": "True"}, ZERO, None),
        ({"ss_zero_terminal_snr": "None"}, ZERO, None),
        ({"ss_zero_terminal_snr": "False"}, Flow(), None),  # which has no such schedule
        ({"ss_v_parameterization": "True"}, Eps(), "ss_v_parameterization=True, the base predicts eps"),
        ({"ss_v_parameterization": "False"}, V(), "the base predicts v"),
        ({"ss_v_parameterization": "True"}, V(), None),
        ({"modelspec.prediction_type": "epsilon"}, V(), "modelspec.prediction_type=epsilon, the base predicts v"),
        ({"modelspec.prediction_type": "epsilon"}, EDM(), "the base predicts edm"),
        ({"modelspec.prediction_type": "v"}, V(), None),
        ({"modelspec.prediction_type": "odd\x1b"}, V(), r"prediction_type=odd\x1b"),
        ({"ss_clip_skip": "2"}, Eps(), "ss_clip_skip=2"),
        ({"modelspec.encoder_layer": "2"}, Eps(), "the base reads its text encoder's last layer"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, Eps(), "the base predicts eps"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, V(), None),
        ({"ss_clip_skip": "None", "ss_noise_offset": "0.05", "ss_min_snr_gamma": "5.0"}, Eps(), None),
    ],
)
def test_a_lora_for_another_base_is_reported(metadata, on, message, caplog):
    base_differences.warn_of_differences(metadata, on, "a.safetensors")
    assert len(caplog.records) == (message is not None)
    assert message is None or message in caplog.text


def test_a_clip_skip_that_the_base_has_too_isnt_told(caplog):
    base_differences.warn_of_differences({"ss_clip_skip": "2"}, Eps(), "a", clip_skip=2)
    assert not caplog.text
    base_differences.warn_of_differences({"ss_clip_skip": "1"}, Eps(), "a", clip_skip=2)
    assert "the base reads its text encoder's layer 2 from the end" in caplog.text


def test_an_invalid_switch_is_refused():
    with pytest.raises(UserError, match="ss_zero_terminal_snr is 'perhaps', where true or false belongs"):
        base_differences.warn_of_differences({"ss_zero_terminal_snr": "perhaps"}, V(), "a")


CUT = struct.pack("<Q", 2**40) + b"{"


@pytest.mark.parametrize("content", [CUT, b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", b""])
def test_a_safetensors_file_with_other_content_is_refused(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"can't be read as a .safetensors file .* download it again"):
        ldm.load(tmp_path / "a.safetensors")


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "adapter_model.bin"])
def test_pickled_files_run_no_code_and_are_refused_by_that_reason(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"model.diffusion_model.x": torch.ones(1), "code": Code()}}, name)
    with pytest.raises(UserError, match="hold code, which isn't run"):
        ldm.load(name)
    for path in (name, ".") if name.startswith("adapter") else (name,):
        with pytest.raises(UserError, match=f"{name} isn.t a .safetensors file.*may hold code"):
            base.read(path)
    assert not (tmp_path / "ran").exists()


def test_names_as_peft_has_them_in_memory_are_read():
    assert split("base_model.model.mid.to_q.lora_A.default.weight") == ("mid.to_q", "lora_A.weight")


def test_loading_a_lora_warns_of_both(tmp_path, caplog):
    pytest.importorskip("peft")
    model = small()
    name = next(n for n, m in layers.adaptable(model.denoiser.network).items() if n.endswith("to_q"))
    width = layers.adaptable(model.denoiser.network)[name].weight.shape
    weights = {
        f"unet.{name}.lora_A.weight": torch.ones(2, width[1]),
        f"unet.{name}.lora_B.weight": torch.ones(width[0], 2),
    }
    save_file(weights, tmp_path / "a.safetensors", {"modelspec.prediction_type": "sample"})
    (tmp_path / "a.json").write_text(json.dumps(A1111))
    model.load_lora(tmp_path / "a.safetensors")
    assert "prediction_type=sample, the base predicts" in caplog.text and "load it at scale 0.6" in caplog.text


def test_swifts_scale_beside_a_lora_is_reported(tmp_path, caplog):
    [line] = warning_of(tmp_path, {"lora_dtype": None, "lora_scale": 0.5}, caplog, name="additional_config.json")
    assert "preferred weight '0.5'; none of it is applied automatically: load it at scale 0.5" in line
    assert not warning_of(tmp_path, {"lora_dtype": None}, caplog, name="additional_config.json")
