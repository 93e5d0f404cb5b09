"""LoRA on a model: nothing changes at the start, the base never; loaded, scaled, merged, refused."""

import copy

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.adapters import LoraAdapter, lora
from ldm.adapters import lora_layers as layers
from ldm.commands.sample import loras
from ldm.common.errors import UserError
from ldm.interop.lora import formats
from tests.adapters.models import equal, generated_latents, small

peft = pytest.importorskip("peft")
ALL = {"rank": 2, "alpha": 3.0, "wanted": "all", "text_encoder": True, "dropout": 0.0}


def random_lora(model, name="new", base=None, **options) -> LoraAdapter:
    """A LoRA that changes something, of a model that it isn't on afterwards."""
    other = copy.deepcopy(model)
    torch.manual_seed(len(name))
    lora.start(other, name, **{**ALL, **options})
    adapter = copy.deepcopy(lora.trained(other, name, "guitar", base or {}))
    for parameter in adapter.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    return adapter


def saved(adapter, folder):
    ldm.save(adapter, folder)
    return folder


@pytest.fixture
def model():
    return small()


def test_a_new_lora_changes_no_bit_of_the_output(model):
    before = generated_latents(model)
    lora.start(model, "new", **ALL)
    assert len(list(layers.injected(model.denoiser.network, "new"))) > 10
    assert torch.equal(generated_latents(model), before)


def test_after_loading_images_differ_and_unloading_brings_them_back(model, tmp_path):
    before, state = generated_latents(model), {k: v.clone() for k, v in model.state_dict().items()}
    model.load_lora(saved(random_lora(model), tmp_path / "a"))
    assert not torch.allclose(generated_latents(model), before, atol=1e-2)
    model.scale_lora("a", 0.0)
    assert torch.equal(generated_latents(model), before)
    model.unload_lora()
    assert equal(model.state_dict(), state)
    assert torch.equal(generated_latents(model), before)


def test_several_add_up_each_at_its_scale(model, tmp_path):
    one, two = random_lora(model, "one"), random_lora(model, "three", rank=3, wanted=["attn1", "conv1"])
    model.load_lora(saved(one, tmp_path / "one.5"), 0.5)
    model.load_lora(saved(two, tmp_path / "two"), -1.0, name="other")
    assert {name: scale for name, (_, scale) in model.adapters.items()} == {"one.5": 0.5, "other": -1.0}
    there = generated_latents(model)
    plain = small()
    for adapter, scale in ((one, 0.5), (two, -1.0)):
        change(plain, adapter.lora, scale)
    torch.testing.assert_close(there, generated_latents(plain), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="'other' on this model already"):
        model.load_lora(tmp_path / "one.5", name="other")
    with pytest.raises(UserError, match="no LoRA 'othr'.*'other'"):
        model.scale_lora("othr", 1)


def change(model, given, scale):
    """The change by definition: scale * alpha / rank * B A."""
    parts = lora.components(model, None)
    for name, alpha in given.alphas.items():
        kind, _, where = name.partition(".")
        weight = parts[kind].get_submodule(where).weight
        down, up = (given.weights[f"{name}.lora_{x}.weight"].flatten(1) for x in "AB")
        weight.data += (scale * alpha / len(down) * up @ down).view_as(weight)


def test_merged_and_unmerged_agree_and_unmerging_is_exact(model, tmp_path):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_lora(saved(random_lora(model), tmp_path / "a"), 0.8)
    beside, wearing = generated_latents(model), model.state_dict().keys()
    model.merge_lora()
    assert model.state_dict().keys() == state.keys() and not model.adapters
    torch.testing.assert_close(generated_latents(model), beside, atol=1e-5, rtol=0)
    loaded = ldm.load(ldm.save(model, tmp_path / "merged"))
    assert torch.equal(generated_latents(loaded), generated_latents(model))
    model.unmerge_lora()
    assert model.state_dict().keys() == wearing
    assert torch.equal(generated_latents(model), beside)
    model.unload_lora("a")
    assert equal(model.state_dict(), state)
    with pytest.raises(UserError, match="no LoRA is merged"):
        model.unmerge_lora()
    with pytest.raises(UserError, match="no LoRA to merge"):
        model.merge_lora()


def test_another_base_is_refused_unless_forced(model, tmp_path):
    from ldm.adapters import base_of

    ldm.save(model, tmp_path / "base")
    base = base_of(model, tmp_path / "base", tmp_path / "lora")
    assert base["path"] == "../base"
    folder = saved(random_lora(model, base=base), tmp_path / "lora")
    small().load_lora(folder)
    other = small(seed=1)
    with pytest.raises(UserError, match=r"another base \(hash .*force=True"):
        other.load_lora(folder)
    before = generated_latents(other)
    other.load_lora(folder, force=True)
    assert not torch.equal(generated_latents(other), before)
    with pytest.raises(UserError, match=r"doesn't fit the model: .* is \(16, 16\), the LoRA's \(8, 8\)"):
        small(width=16).load_lora(folder, force=True)
    through = ldm.load(folder)
    assert list(through.adapters) == ["lora"]
    model.load_lora(folder)
    assert torch.equal(generated_latents(through), generated_latents(model))
    ldm.save(small(seed=1), tmp_path / "base")
    with pytest.raises(UserError, match="another base"):
        ldm.load(folder)
    (tmp_path / "base").rename(tmp_path / "away")
    with pytest.raises(UserError, match="isn't there: load the base"):
        ldm.load(folder)


def test_a_model_that_wears_a_lora_isnt_saved_without_it(model, tmp_path):
    model.load_lora(saved(random_lora(model), tmp_path / "a"))
    for write in (lambda: ldm.save(model, tmp_path / "b"), lambda: model.export(tmp_path / "c")):
        with pytest.raises(UserError, match="merge_lora"):
            write()


def test_the_file_holds_the_loras_weights_alone(model, tmp_path):
    adapter = random_lora(model, rank=2, wanted="attention", text_encoder=False)
    folder = saved(adapter, tmp_path / "a")
    implied = sum(4 * 2 * (a.in_features + a.out_features) for a in attention(model))
    assert 0 < implied == sum(4 * p.numel() for p in adapter.parameters())
    header = 8 + 160 * 2 * len(attention(model))
    assert implied < (folder / "model.safetensors").stat().st_size < implied + header
    assert {p.name for p in folder.iterdir()} == {"config.json", "manifest.json", "model.safetensors"}


def attention(model):
    found = layers.adaptable(model.denoiser.network)
    return [found[name] for name in lora.chosen(found, "attention")]


def test_targets_are_chosen_by_pattern(model):
    found = layers.adaptable(model.denoiser.network)
    ends = {name.rsplit("attn", 1)[-1][2:] for name in lora.chosen(found, "attention")}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(isinstance(found[n], torch.nn.Conv2d) for n in lora.chosen(found, "convolutions"))
    assert set(lora.chosen(found, "all")) == set(found)
    assert {n.split(".")[0] for n in lora.chosen(found, ["mid_block", "conv_in"])} == {"mid_block", "conv_in"}
    assert lora.chosen(found, "down_blocks.*.conv2") == [f"down_blocks.{i}.resnets.0.conv2" for i in range(2)]
    with pytest.raises(UserError, match="'atention'. Did you mean 'attention'"):
        lora.start(model, "new", rank=2, alpha=None, wanted=["attn1", "atention"])


@pytest.mark.parametrize("to", formats.FORMATS)
def test_it_is_exported_to_other_tools_files_and_imported_again(model, tmp_path, to):
    model.load_lora(saved(random_lora(model, wanted=["attention", "conv1"]), tmp_path / "a"), 0.7)
    there = generated_latents(model)
    out = model.export_lora(tmp_path / to, to)
    assert out.name == "pytorch_lora_weights.safetensors"
    fresh = small()
    fresh.load_lora(out, 0.7, name="foreign")
    assert torch.equal(generated_latents(fresh), there)
    assert "hash" not in fresh.adapters["foreign"][0].base


def test_the_command_line_names_several_with_their_scales():
    assert loras(None) == []
    assert loras("mine") == [("mine", 1.0)]
    assert loras("runs/ldm/mine:0.8") == [("runs/ldm/mine", 0.8)]
    assert loras("[a b:.5, C:/x.safetensors,y:-1]") == [("a b", 0.5), ("C:/x.safetensors", 1.0), ("y", -1.0)]


@pytest.mark.parametrize("scale", ["2", None, True, float("nan"), float("inf"), 1e30], ids=str)
def test_an_invalid_scale_is_refused_and_nothing_is_loaded(scale, tmp_path):
    model = small()
    name = "lora_unet_conv_in"
    shape = model.denoiser.network.conv_in.weight.shape
    state = {f"{name}.lora_down.weight": torch.ones(2, *shape[1:]), f"{name}.lora_up.weight": torch.ones(shape[0], 2)}
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="scale"):
        model.load_lora(tmp_path / "one.safetensors", scale)
    assert not model.adapters and not any("lora" in n for n, _ in model.named_parameters())
    model.load_lora(tmp_path / "one.safetensors", 0.5)
    with pytest.raises(UserError, match="scale"):
        model.scale_lora("one", scale)
    assert model.adapters["one"][1] == 0.5


def test_ranks_of_two_matrices_that_differ_are_named(tmp_path):
    model = small()
    shape = model.denoiser.network.conv_in.weight.shape
    state = {"lora_unet_conv_in.lora_down.weight": torch.ones(4, *shape[1:])}
    state["lora_unet_conv_in.lora_up.weight"] = torch.ones(shape[0], 1)
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="conv_in has rank 4 according to lora_A, but 1 according to lora_B"):
        model.load_lora(tmp_path / "one.safetensors")
