"""LoRA files: diffusers/peft's and kohya's, in and out, with their alpha."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.common.errors import UserError
from ldm.interop.lora import formats
from tests.interop.configs import UNETS
from tests.interop.models import diffusers, randomised

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return randomised(diffusers.UNet2DConditionModel(**UNETS["two levels"]))


@pytest.fixture(scope="module")
def adapter(unet):
    """A LoRA of rank 4 with alpha 6, and one module of alpha 2."""
    modules = [m for m in formats.adaptable(unet) if m.endswith(("to_q", "to_out.0", "conv1"))]
    weights = {}
    for name in modules:
        w = unet.get_submodule(name.removeprefix("unet.")).weight
        tail = w.shape[2:]
        weights[f"{name}.lora_A.weight"] = torch.randn(4, w.shape[1], *tail)
        weights[f"{name}.lora_B.weight"] = torch.randn(w.shape[0], 4, *[1] * len(tail))
    return formats.Lora(weights, dict.fromkeys(sorted(modules), 6.0) | {modules[0]: 2.0})


def same(a, b):
    assert a.alphas == b.alphas
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)


@pytest.mark.parametrize("to", formats.FORMATS)
def test_a_file_comes_back_bit_equal_with_its_alphas(to, unet, adapter, tmp_path):
    formats.write(tmp_path / "one.safetensors", adapter, to)
    same(formats.read(tmp_path / "one.safetensors", formats.adaptable(unet)), adapter)


@pytest.mark.parametrize("to", formats.FORMATS)
def test_diffusers_reads_what_is_written_and_changes_the_output_as_alpha_says(to, unet, adapter, tmp_path):
    if to == "kohya":  # of kohya's files diffusers 0.42 reads every alpha, and then takes the most_frequent for all
        adapter = formats.Lora(adapter.weights, dict.fromkeys(adapter.alphas, 6.0))
    formats.write(tmp_path / "pytorch_lora_weights.safetensors", adapter, to)
    loader = diffusers.loaders.StableDiffusionLoraLoaderMixin
    state, alphas, metadata = loader.lora_state_dict(
        tmp_path, weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True
    )
    theirs = diffusers.UNet2DConditionModel(**UNETS["two levels"]).eval()
    theirs.load_state_dict(unet.state_dict())
    loader.load_lora_into_unet(state, alphas, theirs, metadata=metadata)

    plain = diffusers.UNet2DConditionModel(**UNETS["two levels"]).eval()
    plain.load_state_dict(unet.state_dict())
    for name, alpha in adapter.alphas.items():
        a, b = (adapter.weights[f"{name}.lora_{x}.weight"] for x in "AB")
        change = (b.flatten(1) @ a.flatten(1)) * alpha / 4
        module = plain.get_submodule(name.removeprefix("unet."))
        module.weight.data += change.view_as(module.weight)
    x, t, tokens = torch.randn(1, 4, 8, 8), torch.tensor([100]), torch.randn(1, 5, 12)
    with torch.no_grad():
        merged, adapted = plain(x, t, tokens).sample, theirs(x, t, tokens).sample
        assert (merged - unet(x, t, tokens).sample).abs().max() > 0.1
    torch.testing.assert_close(adapted, merged, atol=1e-3 * merged.abs().max().item(), rtol=0)


def test_older_names_of_diffusers_and_pefts_own_are_read(unet, adapter, tmp_path):
    attention = {k: v for k, v in adapter.weights.items() if ".attn1." in k}
    old, bare = {}, {}
    for name, tensor in attention.items():
        middle = ".processor.to_out_lora" if ".to_out.0." in name else ".processor.to_q_lora"
        stem = name.replace(".to_out.0.lora_", ".to_q.lora_").replace(".to_q", middle)
        old[stem.replace(".lora_A.", ".down.").replace(".lora_B.", ".up.")] = tensor
        bare["base_model.model." + name.removeprefix("unet.")] = tensor
    for state in (old, bare):
        save_file(state, tmp_path / "old.safetensors")
        read = formats.read(tmp_path / "old.safetensors", formats.adaptable(unet))
        assert read.weights.keys() == attention.keys()
        assert set(read.alphas.values()) == {4.0}, "without an alpha it is the rank"


def test_what_doesnt_fit_is_named(unet, adapter, tmp_path):
    file = tmp_path / "one.safetensors"
    formats.write(file, adapter, "kohya")
    state = load_file(file)
    state["lora_unet_nowhere.lora_down.weight"] = torch.zeros(1)
    state.pop(next(k for k in state if k.endswith("to_q.lora_up.weight")))
    save_file(state, file)
    with pytest.raises(UserError, match=r"missing unet\..*to_q\.lora_B.*unexpected lora_unet_nowhere"):
        formats.read(file, formats.adaptable(unet))
    with pytest.raises(UserError, match="isn't a LoRA format"):
        formats.write(file, adapter, "koya")


def test_kohyas_table_is_one_to_one(unet):
    table = formats.kohya_table(formats.adaptable(unet))
    assert len(set(table.values())) == len(table) > 40
    assert "lora_unet_down_blocks_0_attentions_0_proj_in" in table.values()
