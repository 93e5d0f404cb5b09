"""What tools write about a LoRA's strength, in all places, as tensors alone: no model is needed."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ldm.common.errors import UserError
from ldm.interop.lora import formats

Q, CONV, TEXT = "unet.mid.attn1.to_q", "unet.mid.conv1", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
MODULES = [Q, CONV, TEXT]
META = "lora_adapter_metadata"


def weights(*modules, rank=4, dtype=torch.float32):
    state = {}
    for module in modules or (Q,):
        kernel = (3, 3) if module == CONV else ()
        state[f"{module}.lora_A.weight"] = torch.ones(rank, 8, *kernel, dtype=dtype)
        state[f"{module}.lora_B.weight"] = torch.ones(8, rank, *[1] * len(kernel), dtype=dtype)
    return state


def kohyas(*modules, alpha=None, rank=4):
    state = {}
    for module in modules or (Q,):
        name = formats.kohya_table(MODULES)[module]
        given = weights(module, rank=rank)
        state |= {f"{name}.lora_down.weight": given[f"{module}.lora_A.weight"]}
        state |= {f"{name}.lora_up.weight": given[f"{module}.lora_B.weight"]}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.as_tensor(alpha)
    return state


def read(folder, state, metadata=None, config=None, name="a.safetensors"):
    save_file(state, folder / name, metadata)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "adapter_config.json").write_text(text)
    return formats.read(folder / name, MODULES).alphas


SAYS_16 = {"r": 4, "lora_alpha": 16}
PREFIXED = {"unet.r": 4, "unet.lora_alpha": 16}


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "mine.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("state", [weights(), kohyas(), {k.removeprefix("unet."): v for k, v in weights().items()}])
def test_the_config_beside_counts_whatever_the_file_and_its_tensors_are_called(name, state, tmp_path):
    assert read(tmp_path, state, config=SAYS_16, name=name) == {Q: 16.0}


def test_a_config_beside_pefts_own_file_isnt_taken_for_anothers(tmp_path, caplog):
    save_file(weights(), tmp_path / "adapter_model.safetensors")
    assert read(tmp_path, kohyas(alpha=2.0), config=SAYS_16) == {Q: 2.0}
    assert (
        "adapter_config.json is assumed to belong to the adapter_model beside it, not to a.safetensors" in caplog.text
    )


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    assert read(tmp_path, weights(), config="\ufeff" + json.dumps(SAYS_16)) == {Q: 16.0}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"lora_alpha": 16, "unet.r": 4}, {Q: 16.0, TEXT: 16.0}),
        ({"unet.lora_alpha": 16, "text_encoder.lora_alpha": 2, "r": 4}, {Q: 16.0, TEXT: 2.0}),
        ({"unet.lora_alpha": 16, "lora_alpha": 16}, {Q: 16.0, TEXT: 16.0}),
        ({"unet.use_rslora": True, "lora_alpha": 16, "r": 4}, {Q: 32.0, TEXT: 16.0}),
        ({"unet.lora_alpha": 16}, {Q: 16.0, TEXT: 4.0}),
    ],
)
def test_settings_of_one_part_and_of_all_are_both_read(declared, expected, tmp_path, caplog):
    assert read(tmp_path, weights(Q, TEXT), {META: json.dumps(declared)}) == expected
    assert ("doesn't mention the text_encoder" in caplog.text) == (TEXT in expected and len(declared) == 1)


def test_settings_of_a_part_without_weights_are_named(tmp_path, caplog):
    both = PREFIXED | {"text_encoder.lora_alpha": 2}
    assert read(tmp_path, weights(), {META: json.dumps(both)}) == {Q: 16.0}
    assert "configures the text_encoder, but the file has no weights" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"adapter_config": json.dumps(SAYS_16)}, 16.0),
        ({"lora_config": json.dumps(PREFIXED)}, 16.0),
        ({"peft_config": json.dumps(SAYS_16 | {"use_rslora": True})}, 32.0),
        ({"lora_alpha": "16", "rank": "4"}, 16.0),
        ({"Alpha": "16", "use_rslora": "true"}, 32.0),
        ({"rank": "4", "use_rslora": "False"}, 4.0),
        ({"scaling": "1.0"}, 4.0),
        ({"loraAlpha": "16"}, 16.0),
        ({"SS_NETWORK_ALPHA": "16"}, 16.0),
        ({"config": '{"network": {"linear": 4, "linear_alpha": 4}}'}, 4.0),
        ({"ss_tag_frequency": '{"a": {"rank": 3}, "rank": {"alpha": 1}}', "ss_training_comment": "alpha 8"}, 4.0),
        ({"lora_alpha": "16", "scaling": "4"}, 16.0),
        ({"ss_alpha_mask": "True", "ss_network_dim": "4", "ss_scale_weight_norms": "2"}, 4.0),
        ({"ss_network_alpha": "16", "ss_network_args": ""}, 16.0),
        ({"ss_network_alpha": "0"}, 4.0),  # which kohya's tools take for the rank
        ({"ss_network_args": '{"rank_dropout": "0.1", "algo": "locon", "use_scalar": "False"}'}, 4.0),
        ({"workflow": '{"nodes": [], "alpha": null}', "guidance_scale": "7", "prompt": "{"}, 4.0),
    ],
)
def test_metadata_that_say_the_strength_are_read(metadata, expected, tmp_path):
    assert read(tmp_path, weights(), metadata) == {Q: expected}


TWICE = '{"r": 4, "lora_alpha": 16, "lora_alpha": 4}'


@pytest.mark.parametrize(
    ("state", "metadata", "config", "message"),
    [
        (weights(), None, TWICE, "adapter_config.json has 'lora_alpha' twice"),
        (weights(), {META: TWICE}, None, "lora_adapter_metadata has 'lora_alpha' twice"),
        (weights(), {META: '{"lora_alpha": 4, "unet.lora_alpha": 16}'}, None, "lora_alpha=4 for all parts and unet"),
        (weights(), {META: '{"unet.r": 4, "text_encoder_3.r": 4}'}, None, "represented here: text_encoder_3.r=4"),
        (weights(), {META: json.dumps(PREFIXED)}, {"lora_alpha": 8}, "is 8 in .*json, but 16 in its metadata"),
        (kohyas(alpha=2.0), None, SAYS_16, "is 16 in .*adapter_config.json, but 2 in its tensor"),
        (weights(), {"peft_config": '{"default": {"lora_alpha": 16}}'}, None, "represented here: default="),
        (weights(), None, SAYS_16 | {"scale": 0}, "represented here: scale=0"),
        (weights(), None, SAYS_16 | {"_lora_alpha": 4}, "represented here: _lora_alpha=4"),
        (
            kohyas(alpha=2.0),
            {"lora_alpha": "16"},
            None,
            "is 2 in the file, but 16 according to lora_alpha in its metadata",
        ),
        (weights(), {"lora_alpha": "16", "network_alpha": "8"}, None, "alpha=(16|8) and .*alpha=(8|16): keep"),
        (weights(), {"rank": "8"}, None, "have rank=8, .* has rank 4: they belong to another LoRA"),
        (weights(), {"use_rslora": "true"}, None, "have use_rslora without alpha"),
        (weights(), {"use_rslora": "perhaps"}, None, "use_rslora is 'perhaps', where true or false"),
        (weights(), {"scaling": "4.0"}, None, "have scaling, which changes its strength"),
        (kohyas(alpha=2.0), {"lora_scale": "0.5"}, None, "have lora_scale, which changes its strength"),
        (weights(), {"strength": "0.25"}, None, "have strength, which changes its strength"),
        (
            weights(),
            {"ot_config": '{"lora_alpha": 16.0}'},
            None,
            "have ot_config.lora_alpha, which changes its strength",
        ),
        (
            weights(),
            {"config": '{"network": {"linear": 4, "linear_alpha": 16}}'},
            None,
            "have config.network.linear_alpha",
        ),
        (weights(), {"loraAlpha": "16", "lora_rank": "8"}, None, "have lora_rank=8"),
        (kohyas(), {"ss_network_dim": "8"}, None, "have ss_network_dim=8, .* has rank 4"),
        (kohyas(), {"ss_network_args": '{"rs_lora": "True"}'}, None, "ss_network_args.rs_lora"),
        (kohyas(), {"ss_network_args": '{"scale_weight": "2"}'}, None, "ss_network_args.scale_weight"),
        (kohyas(), {"ss_network_args": '{"algo": "lokr"}'}, None, "ss_network_args.algo=lokr"),
        (kohyas(CONV), {"ss_network_args": '{"conv_dim": "8"}'}, None, "have conv_dim=8, .* has rank 4"),
    ],
)
def test_what_contradicts_itself_or_isnt_read_is_refused_by_name(state, metadata, config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, state, metadata, config)


@pytest.mark.parametrize("key", ["ss_network_alpha", "ss_network_dim"])
def test_a_log_of_another_lora_is_reported_and_the_tensors_are_used(key, tmp_path, caplog):
    assert read(tmp_path, kohyas(alpha=2.0), {key: "8"}) == {Q: 2.0}
    assert f"its metadata say {key}=8, but its weights differ: the weights are used" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"ot_config": '{"lora_alpha": 16.0, "lora_rank": 4}'},
            "say ot_config.lora_alpha=16.0, but its weights differ",
        ),
        ({"ss_network_args": '{"dora_wd": "True"}'}, "say ss_network_args.dora_wd=True"),
        ({"ss_network_args": '{"algo": "lokr"}'}, "say ss_network_args.algo=lokr"),
        ({"ot_config": '{"lora_alpha": 2.0, "lora_rank": 4, "lora_weight_decompose": false}'}, None),
    ],
)
def test_settings_of_a_tools_own_that_differ_from_the_tensors_are_reported(metadata, message, tmp_path, caplog):
    assert read(tmp_path, kohyas(alpha=2.0), metadata) == {Q: 2.0}
    assert message in caplog.text if message else not caplog.text


def test_lycoris_rank_stabilised_tensors_are_taken_as_they_are(tmp_path):
    log = {"ss_network_alpha": "16", "ss_network_args": '{"rs_lora": "True", "algo": "lora"}'}
    assert read(tmp_path, kohyas(alpha=16 * math.sqrt(4)), log) == {Q: 32.0}


def test_patterns_that_mean_no_layer_and_alphas_of_zero_are_named(tmp_path, caplog):
    assert read(tmp_path, weights(), config=SAYS_16 | {"alpha_pattern": {"to_v": 2}}) == {Q: 16.0}
    assert "alpha_pattern has patterns that match no layer of the LoRA: to_v" in caplog.text
    caplog.clear()
    both = SAYS_16 | {"alpha_pattern": {"q_proj": 2}}  # of the other part
    assert read(tmp_path, weights(Q, TEXT), config=both) == {Q: 16.0, TEXT: 2.0} and not caplog.text
    (tmp_path / "adapter_config.json").unlink()
    assert read(tmp_path, kohyas(alpha=0.0)) == {Q: 0.0}
    assert "kohya's tools read 0 as the rank" in caplog.text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({n: t * 1e300 for n, t in weights(dtype=torch.float64).items()}, "isn't finite"),
        (kohyas(alpha=torch.tensor(1e300, dtype=torch.float64)), "too large to compute"),
        (kohyas(alpha=3e38), "too large to compute"),
        ({n: t * 1e25 for n, t in weights().items()}, "too large to compute"),
    ],
)
def test_what_overflows_in_float32_is_refused(state, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, state)


def test_float8_is_read(tmp_path):
    assert read(tmp_path, weights(dtype=torch.float8_e4m3fn)) == {Q: 4.0}


def test_a_folder_of_two_loras_is_refused(tmp_path):
    for name in formats.FILES:
        save_file(weights(), tmp_path / name)
    with pytest.raises(UserError, match="two LoRAs, adapter_model.safetensors and pytorch_lora_weights.safetensors"):
        formats.file_at(tmp_path)


def test_an_alpha_of_four_bits_gets_a_sentence(tmp_path):
    packed = torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    state = {**weights(Q), f"{Q}.alpha": packed}
    with pytest.raises(UserError, match="alpha of .*float4_e2m1fn_x2"):
        formats.from_state(state, {}, MODULES, "a")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"type": "lora", "linear": 4, "linear_alpha": 4}, None),
        (
            {"linear": 4, "linear_alpha": 2, "conv": 8},
            "config.yaml beside it declares network.linear_alpha=2, but the weights",
        ),
        ({"rank": 16, "alpha": 4}, "declares network.rank=16, but the weights differ: the weights are used"),
    ],
)
def test_ai_toolkits_config_beside_a_lora_is_named_where_the_weights_differ(network, message, tmp_path, caplog):
    config = {"job": "extension", "config": {"name": "a", "process": [{"type": "sd_trainer", "network": network}]}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    assert read(tmp_path, weights()) == {Q: 4.0}
    assert message in caplog.text if message else not caplog.text


@pytest.mark.parametrize("text", ["a: 1", "[1]", "a: &b 1\nc: *b", "config: {process: [1, {network: 3}]}"])
def test_a_config_of_another_tool_changes_nothing(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert read(tmp_path, weights()) == {Q: 4.0}
