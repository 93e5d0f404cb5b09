"""LoRAs as peft and diffusers write them: what their own loading computes is what ours computes."""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.common.errors import UserError
from ldm.conditioning import FrozenText
from ldm.interop.lora import formats
from ldm.networks import Cond
from tests.interop.configs import UNETS
from tests.interop.models import clip_config, diffusers, randomised, transformers
from tests.interop.pipelines import frozen_text, random_model

peft = pytest.importorskip("peft")
TARGETS = ["to_q", "to_out.0", "conv1", "proj_in"]
STRENGTHS = {
    "alpha": {"r": 4, "lora_alpha": 16},
    "its defaults": {},
    "patterns": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {"to_q": 2, "^mid_block.resnets.0.conv1": 3},
        "alpha_pattern": {r"attn\d.to_q": 7, "mid_block.*conv1": 2, r"up_blocks\.[01].*\.conv1": 5},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 16, "use_rslora": True, "rank_pattern": {"to_q": 9}},
    "settings that change nothing": {"r": 2, "lora_alpha": 6, "fan_in_fan_out": True, "lora_dropout": 0.5},
}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return randomised(diffusers.UNet2DConditionModel(**UNETS["two levels"] | {"cross_attention_dim": 16}))


@pytest.fixture(scope="module")
def base(unet, text_folder, tmp_path_factory):
    """A model of ours with that U-Net and a frozen CLIP."""
    import ldm

    folder = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(folder)
    made = random_model({"text": frozen_text(text_folder)})
    made.denoiser.network = ldm.load(folder)
    return made


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


def grown(net, scale=0.3):
    """No LoRA matrix is zero."""
    torch.manual_seed(5)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            parameter.data = scale * torch.randn_like(parameter)
    return net


def written(unet, folder, **settings):
    """A LoRA of peft's on a copy of the U-Net, saved by peft itself; returns the network with it on."""
    settings = {"target_modules": TARGETS} | settings
    net = grown(peft.get_peft_model(copy.deepcopy(unet), peft.LoraConfig(**settings)))
    net.save_pretrained(folder)
    return net.eval()


def inputs():
    torch.manual_seed(3)
    return torch.randn(2, 4, 8, 8), torch.tensor([3.0, 711.0]), torch.randn(2, 7, 16)


@torch.no_grad()
def same_output(model, theirs, unet):
    x, t, tokens = inputs()
    wanted, plain = theirs(x, t, tokens).sample, unet(x, t, tokens).sample
    got = model.denoiser.network(x, t, Cond(tokens=tokens))
    assert (wanted - plain).abs().max() > 0.1, "a LoRA that changes nothing proves nothing"
    torch.testing.assert_close(got, wanted, atol=1e-5 * max(1, wanted.abs().max().item()), rtol=0)


@pytest.mark.parametrize("name", STRENGTHS)
def test_pefts_folder_has_the_strength_that_its_config_says(name, unet, model, tmp_path):
    theirs = written(unet, tmp_path / "mine", **STRENGTHS[name])
    assert {f.name for f in (tmp_path / "mine").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    model.load_lora(tmp_path / "mine" / "adapter_model.safetensors")
    same_output(model, theirs, unet)
    model.unload_lora()
    model.load_lora(tmp_path / "mine", name="folder")
    same_output(model, theirs, unet)


def test_the_first_of_several_patterns_is_used_as_in_peft_with_a_warning(unet, model, tmp_path, caplog):
    patterns = {"mid_block.*conv1": 2, "conv1": 20}  # peft writes them sorted, so that the file means the second
    written(unet, tmp_path, r=4, alpha_pattern=patterns)
    model.load_lora(tmp_path)
    same_output(model, peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path).eval(), unet)
    assert "several patterns of the LoRA's config match mid_block.resnets.0.conv1" in caplog.text


@pytest.mark.parametrize("name", ["patterns", "rank-stabilised"])
def test_the_metadata_of_diffusers_say_the_same(name, unet, model, tmp_path):
    theirs = copy.deepcopy(unet)
    theirs.add_adapter(peft.LoraConfig(**{"target_modules": TARGETS} | STRENGTHS[name]))
    grown(theirs).eval()
    theirs.save_lora_adapter(tmp_path / "part")
    layers = peft.get_peft_model_state_dict(theirs)
    pipe = diffusers.StableDiffusionPipeline
    config = theirs.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path / "whole", unet_lora_layers=layers, unet_lora_adapter_metadata=config)
    for folder in ("part", "whole"):
        model.load_lora(tmp_path / folder)
        same_output(model, theirs, unet)
        model.unload_lora()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save=.'conv_in'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_setting_of_the_future": 0.5}, "a_setting_of_the_future=0.5"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', where a number"),
        ({"lora_alpha": None}, "lora_alpha is 'None'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, where a finite"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"alpha_pattern": [1]}, "alpha_pattern is a list"),
        ({"alpha_pattern": {"(": 1}}, "pattern '\\(', which isn't a valid pattern"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "repeats too much"),
        ({"alpha_pattern": {"(" * 2000: 1}}, "which isn't a valid pattern"),
        ({"alpha_pattern": {"a{99999999999999999}": 1}}, "which isn't a valid pattern"),
        ({"alpha_pattern": {"to_q": "a"}}, "alpha_pattern of to_q is 'a'"),
        ({"r": 8}, "rank 8 for .*, whose weights have 4: it belongs to another LoRA"),
    ],
)
def test_what_a_config_says_and_isnt_here_is_refused_by_name(settings, message, unet, model, tmp_path):
    written(unet, tmp_path, r=4, lora_alpha=16)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=f"adapter_config.json.*{message}"):
        model.load_lora(tmp_path)
    assert not model.adapters


def test_a_dora_is_one_by_its_tensors_even_without_its_config_which_mustnt_deny_it(unet, model, tmp_path):
    theirs = written(unet, tmp_path, r=4, lora_alpha=4, use_dora=True, target_modules=["to_q", "conv1"])
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(UserError, match="adapter_config.json.*use_dora=False"):
        model.load_lora(tmp_path)
    file.unlink()
    model.load_lora(tmp_path)
    same_output(model, theirs, unet)


def test_without_its_config_a_file_of_pefts_is_loaded_with_a_word(unet, model, tmp_path, caplog):
    written(unet, tmp_path, r=4, lora_alpha=16)
    (tmp_path / "adapter_config.json").rename(tmp_path / "away.json")
    with caplog.at_level(logging.WARNING, "ldm"):
        model.load_lora(tmp_path)
    assert "no adapter_config.json beside it" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", "nothing", '{"unet.lora_alpha": "x"}', "[" * 100_000])
def test_damaged_metadata_get_a_sentence(text, unet, model, tmp_path):
    written(unet, tmp_path, r=4)
    state = load_file(tmp_path / "adapter_model.safetensors")
    state = {f"unet.{name.removeprefix('base_model.model.')}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "one.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(UserError, match="one.safetensors, lora_adapter_metadata"):
        model.load_lora(tmp_path / "one.safetensors")
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="adapter_config.json can't be read as JSON"):
        model.load_lora(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(float("nan")), "isn't finite"),
        (lambda w: w.index_fill_(0, torch.tensor(0), float("inf")), "isn't finite"),
        (lambda w: w.half().fill_(float("-inf")), "isn't finite"),
        (lambda w: w.to(torch.int8), "int8 of shape"),
        (lambda w: w[0, 0], "of shape \\(\\)"),
        (lambda w: w[:0], "of shape \\(0"),
    ],
)
def test_files_that_hold_no_weights_are_refused(change, message, unet, model, tmp_path):
    written(unet, tmp_path, r=4, target_modules=["to_q"])
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    name = next(n for n in state if "lora_A" in n)
    save_file(state | {name: change(state[name].clone()).contiguous()}, file)
    with pytest.raises(UserError, match=f"adapter_model.safetensors.*{message}"):
        model.load_lora(file)


# CLIP's text encoder, whose modules newer transformers call otherwise than all files ----------------------------------


@pytest.fixture(scope="module")
def text():
    """A LoRA of alpha 6 and rank 4 on the encoder of `text_folder`, by canonical names, and what it computes there."""
    torch.manual_seed(0)
    encoder = transformers.CLIPTextModel(clip_config())
    encoder = randomised(encoder)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "out_proj", "fc1"])
    net = grown(peft.get_peft_model(encoder, config))
    state = peft.get_peft_model_state_dict(net)
    plain = {name.removeprefix("base_model.model.").removeprefix("text_model."): t for name, t in state.items()}
    ids = torch.tensor([[512, 5, 9, 513]])
    with torch.no_grad():
        return plain, ids, net(input_ids=ids).last_hidden_state


def kohyas(plain, prefix):
    state = {}
    for name, tensor in plain.items():
        module, _, leaf = name.partition(".lora_")
        kohya = f"{prefix}{module.replace('.', '_')}"
        state[f"{kohya}.lora_{'down' if leaf[0] == 'A' else 'up'}.weight"] = tensor
        state[f"{kohya}.alpha"] = torch.tensor(6.0)
    return state


CONFIG = {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4, "text_encoder.lora_alpha": 6})}
SPELLINGS = {
    "kohya": lambda p: (kohyas(p, "lora_te_text_model_"), {}),
    "kohya, short": lambda p: (kohyas(p, "lora_te_"), {}),
    "kohya, of two encoders": lambda p: (kohyas(p, "lora_te1_text_model_"), {}),
    "diffusers": lambda p: ({f"text_encoder.text_model.{k}": v for k, v in p.items()}, CONFIG),
    "diffusers, short": lambda p: ({f"text_encoder.{k}": v for k, v in p.items()}, CONFIG),
    "diffusers, old": lambda p: ({f"text_encoder.text_model.{old(k)}": v for k, v in p.items()}, CONFIG),
}


def old(name):
    for new, former in (("q_proj", "to_q"), ("out_proj", "to_out")):
        name = name.replace(f"{new}.lora_A", f"{former}_lora.down").replace(f"{new}.lora_B", f"{former}_lora.up")
    return name.replace("fc1.lora_A", "fc1.lora_linear_layer.down").replace("fc1.lora_B", "fc1.lora_linear_layer.up")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_either_spelling_of_clip_comes_in(spelling, text, model, tmp_path):
    plain, ids, wanted = text
    state, metadata = SPELLINGS[spelling](plain)
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "te.safetensors", metadata)
    encoder = model.conditioner.parts["text"].encoder
    with torch.no_grad():
        before = encoder(input_ids=ids).last_hidden_state
        model.load_lora(tmp_path / "te.safetensors")
        torch.testing.assert_close(encoder(input_ids=ids).last_hidden_state, wanted, atol=1e-5, rtol=0)
        assert (before - wanted).abs().max() > 0.1
        model.scale_lora("te", 0.0)
        torch.testing.assert_close(encoder(input_ids=ids).last_hidden_state, before, atol=1e-6, rtol=0)
        model.scale_lora("te", 1.0)
        with pytest.raises(UserError, match="te changes the frozen text encoder too"):
            model.merge_lora()
        model.unload_lora()
        assert torch.equal(encoder(input_ids=ids).last_hidden_state, before)


@pytest.mark.parametrize("to", formats.FORMATS)
def test_the_canonical_spelling_is_exported_and_diffusers_reads_it(to, text, model, text_folder, tmp_path):
    plain, ids, wanted = text
    save_file(kohyas(plain, "lora_te_"), tmp_path / "te.safetensors")
    model.load_lora(tmp_path / "te.safetensors")
    out = model.export_lora(tmp_path / "out", to)
    start = "lora_te_text_model_encoder_layers_" if to == "kohya" else "text_encoder.text_model.encoder.layers."
    assert all(name.startswith(start) for name in load_file(out))

    loader = diffusers.loaders.StableDiffusionLoraLoaderMixin
    state, alphas, metadata = loader.lora_state_dict(tmp_path / "out", weight_name=out.name, return_lora_metadata=True)
    encoder = transformers.CLIPTextModel.from_pretrained(text_folder / "text_encoder")
    loader.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder", metadata=metadata)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(input_ids=ids).last_hidden_state, wanted, atol=1e-5, rtol=0)


def test_both_spellings_of_one_layer_in_one_file_are_refused(text, model, tmp_path):
    state = kohyas(text[0], "lora_te_") | kohyas(text[0], "lora_te_text_model_")
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "te.safetensors")
    with pytest.raises(UserError, match="occurs twice, in two spellings"):
        model.load_lora(tmp_path / "te.safetensors")


def test_a_lora_of_text_on_a_model_without_is_refused(text, tmp_path):
    save_file(kohyas(text[0], "lora_te_text_model_"), tmp_path / "te.safetensors")
    with pytest.raises(UserError, match="no text_encoder for a LoRA"):
        random_model({}, context_dim=16).load_lora(tmp_path / "te.safetensors")


# kohya's alphas ------------------------------------------------------------------------------------------------------


def kohya_file(unet, path, alphas=True, metadata=None, **changes):
    torch.manual_seed(7)
    state = {}
    for name in ("mid_block.attentions.0.proj_in", "mid_block.resnets.0.conv1"):
        weight = unet.get_submodule(name).weight
        kohya = f"lora_unet_{name.replace('.', '_')}"
        state[f"{kohya}.lora_down.weight"] = torch.randn(4, *weight.shape[1:])
        state[f"{kohya}.lora_up.weight"] = torch.randn(weight.shape[0], 4, *[1] * (weight.ndim - 2))
        if alphas:
            state[f"{kohya}.alpha"] = torch.tensor(2.0)
    save_file(state | changes, path, metadata)
    return path


CONV, LINEAR = "unet.mid_block.resnets.0.conv1", "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("alphas", "metadata", "expected"),
    [
        (True, {"ss_network_alpha": "8"}, {LINEAR: 2.0, CONV: 2.0}),
        (True, {"ss_network_alpha": "Dynamic"}, {LINEAR: 2.0, CONV: 2.0}),
        (False, {}, {LINEAR: 4.0, CONV: 4.0}),
        (False, {"ss_network_alpha": "1.0"}, {LINEAR: 1.0, CONV: 1.0}),
        (False, {"ss_network_alpha": "8", "ss_network_args": '{"conv_dim": "4"}'}, {LINEAR: 8.0, CONV: 1.0}),
        (False, {"ss_network_alpha": "8", "ss_network_args": '{"conv_alpha": "3"}'}, {LINEAR: 8.0, CONV: 3.0}),
        (False, {"ss_network_alpha": "None", "ss_network_args": "null"}, {LINEAR: 4.0, CONV: 4.0}),
    ],
)
def test_kohyas_alphas_are_its_tensors_or_else_its_metadata(alphas, metadata, expected, unet, tmp_path):
    file = kohya_file(unet, tmp_path / "a.safetensors", alphas, metadata)
    assert formats.read(file, formats.adaptable(unet)).alphas == expected


@pytest.mark.parametrize(
    ("alphas", "metadata", "changes", "message"),
    [
        (False, {"ss_network_alpha": "Dynamic"}, {}, "ss_network_alpha is 'Dynamic'"),
        (False, {"ss_network_args": '{"block_alphas": "1,2"}'}, {}, "ss_network_args.block_alphas"),
        (False, {"ss_network_args": "{"}, {}, "ss_network_args can't be read as JSON"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.ones(2)}, "shape \\(2,\\), where one"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(float("nan"))}, "is nan"),
        (True, {}, {"lora_unet_mid_block_attentions_0_to_q.alpha": torch.tensor(2.0)}, "unexpected"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_out.alpha": torch.tensor(2.0)}, "missing .*proj_out.lora_A"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_in.dora_scale": torch.ones(4, 1)}, "DoRA"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_out.hada_w1_a": torch.ones(4, 1)}, "missing .*hada_w1_b"),
        (True, {}, {"lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight": torch.ones(4, 1)}, "Tucker"),
        (True, {"lora_adapter_metadata": '{"unet.lora_alpha": 16}'}, {}, "alpha of .* is 16 in its metadata, but 2 in"),
    ],
)
def test_what_kohyas_files_say_and_isnt_read_is_refused_by_name(alphas, metadata, changes, message, unet, tmp_path):
    file = kohya_file(unet, tmp_path / "a.safetensors", alphas, metadata, **changes)
    with pytest.raises(UserError, match=f"a.safetensors.*{message}"):
        formats.read(file, formats.adaptable(unet))


def test_a_1x1_convolutions_lora_may_be_written_as_matrices(unet, model, tmp_path):
    state = load_file(kohya_file(unet, tmp_path / "a.safetensors"))
    flat = {n: t.flatten(1) if "proj_in" in n and t.ndim == 4 else t for n, t in state.items()}
    flat = {n: t.flatten(1) if "up" in n and t.ndim == 4 else t for n, t in flat.items()}
    save_file(flat, tmp_path / "b.safetensors")
    x, t, tokens = inputs()
    outputs = []
    for name in "ab":
        model.load_lora(tmp_path / f"{name}.safetensors")
        outputs.append(model.denoiser.network(x, t, Cond(tokens=tokens)))
        model.unload_lora()
    assert torch.equal(*outputs)


def test_an_encoder_that_came_without_a_folder_is_written_under_the_names_of_files(text_folder, tmp_path):
    from ldm.conditioning.text.encoders import load_encoder, load_tokenizer, write_encoder

    whole = load_encoder(str(text_folder / "text_encoder"))
    part = FrozenText("nowhere", str(text_folder / "tokenizer"), length=16, dim=16)
    part.hold(load_tokenizer(str(text_folder / "tokenizer")), whole)
    write_encoder(part, tmp_path / "te", tmp_path / "words")
    assert all(name.startswith("text_model.") for name in load_file(tmp_path / "te" / "model.safetensors"))
    again = load_encoder(str(tmp_path / "te"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["encoder.layers.1.mlp.fc1.weight", "final_layer_norm.bias"])
def test_an_encoder_that_isnt_whole_or_finite_is_refused(name, text_folder, tmp_path):
    import shutil

    from ldm.conditioning.text.encoders import load_encoder

    folder = shutil.copytree(text_folder / "text_encoder", tmp_path / "te")
    state = load_file(folder / "model.safetensors")
    key = next(n for n in state if n.endswith(name))
    save_file({n: t for n, t in state.items() if n != key}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"isn't whole: .*{name} is missing"):
        load_encoder(str(folder))
    save_file(state | {key: state[key] / 0}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"damaged: .*{name} isn't finite"):
        load_encoder(str(folder))
