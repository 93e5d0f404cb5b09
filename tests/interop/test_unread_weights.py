"""Weights in files of other tools that a reader could leave out in silence."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ldm.common.errors import UserError
from ldm.common.registry import spec_of
from ldm.interop.diffusers_folder import load_part
from ldm.interop.parts import clip_text, vae_config
from ldm.networks import UNet


def test_a_weight_under_both_spellings_is_refused():
    one, two = "transformer.text_model.a", "transformer.a"
    with pytest.raises(UserError, match=f"{one} and {two} are the same weight"):
        clip_text.from_clip_names({one: torch.zeros(1), two: torch.ones(1)})
    attention = "encoder.mid_block.attentions.0"
    state = {f"{attention}.query.weight": torch.zeros(1, 1), f"{attention}.to_q.weight": torch.ones(1, 1)}
    with pytest.raises(UserError, match="query.weight and .*to_q.weight are the same weight"):
        vae_config.weights_from_diffusers(state, {})


@pytest.mark.parametrize(("name", "said"), [("adapter.weight", True), ("logit_scale", False)])
def test_tensors_beside_clips_are_named(name, said, caplog):
    assert clip_text.from_clip_names({"transformer.a": torch.zeros(1), name: torch.zeros(1)}).keys() == {"a"}
    assert (f"1 tensors have no counterpart here and are left out: {name}" in caplog.text) is said


@pytest.mark.parametrize(("changed", "said"), [(False, False), (True, True)])
def test_another_attention_mask_than_the_causal_one_is_reported(changed, said, caplog):
    mask = torch.full((4, 4), -torch.inf).triu(1).half()
    mask[0, 3] = 0 if changed else mask[0, 3]
    state = {"model.attn_mask": mask, "model.positional_embedding": torch.zeros(4, 2)}
    assert clip_text.from_open_clip_names(state).keys() == {"embeddings.position_embedding.weight"}
    assert ("attn_mask isn't the causal mask" in caplog.text) is said


@pytest.mark.parametrize("part", ["quant_conv", "post_quant_conv"])
def test_a_convolution_that_the_config_denies_is_refused(part):
    state, config = {f"{part}.weight": torch.zeros(1)}, {f"use_{part}": False}
    with pytest.raises(UserError, match=f"use_{part}=false, and the weights have one"):
        vae_config.weights_from_diffusers(state, config)
    assert vae_config.weights_from_diffusers({}, config).keys() == {f"{part}.weight", f"{part}.bias"}


def test_weights_beside_the_network_of_our_own_class_are_refused(tmp_path):
    net = UNet(in_channels=1, channels=[8], blocks=1, attention=[False], groups=4)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "LdmUNet", "spec": spec_of(net)}))
    state = {f"network.{name}": tensor for name, tensor in net.state_dict().items()}
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(state, file)
    assert isinstance(load_part(tmp_path), UNet)
    save_file({**state, "scale": torch.ones(1)}, file)
    with pytest.raises(UserError, match="unexpected scale"):
        load_part(tmp_path)
