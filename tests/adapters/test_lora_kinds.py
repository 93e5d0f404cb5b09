"""DoRA, LoHa and LoKr: computed as peft does, merged, stacked, trained, and written for other tools."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.adapters import lora
from ldm.adapters import lora_layers as layers
from ldm.common.errors import UserError
from ldm.interop.lora import formats, kinds
from ldm.networks import Cond
from tests.adapters.models import equal, small

peft = pytest.importorskip("peft")
KINDS = ("dora", "loha", "lokr")
ATTENTION, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"
EITHER = f"({ATTENTION}|{CONV})".replace(".", r"\.")


def config_of(kind, **options):
    rank = 1 if kind == "lokr" else 2  # at 2 its factors are whole, and have no alpha in LyCORIS
    options = {"r": rank, "target_modules": EITHER} | options
    alpha = options.pop("alpha", 2)
    if kind in ("lora", "dora"):
        return peft.LoraConfig(**options, lora_alpha=alpha, use_dora=kind == "dora")
    return (peft.LoHaConfig if kind == "loha" else peft.LoKrConfig)(**options, alpha=alpha)


def theirs(network, kind, dtype=torch.float32, **options):
    """peft's own adapter on a copy of the network, with weights that `dtype` holds, and its tensors by peft's names."""
    network = copy.deepcopy(network)
    peft.inject_adapter_in_model(config_of(kind, **options), network, "default")
    torch.manual_seed(5)
    for name, parameter in network.named_parameters():
        if ".default" in name:
            size = 1 + 0.1 * torch.rand_like(parameter) if "magnitude" in name else 0.6 * torch.randn_like(parameter)
            parameter.data = (parameter.data * size if "magnitude" in name else size).to(dtype).float()
    return network.eval(), peft.get_peft_model_state_dict(network)


def lycoris_names(state, alpha=None):
    """The same tensors as kohya's tools and LyCORIS call and shape them."""
    made = {}
    for name, tensor in state.items():
        module, leaf = kinds.split_leaf(name)
        key = f"lora_unet_{module.replace('.', '_')}"
        leaf = {kinds.DOWN: "lora_down.weight", kinds.UP: "lora_up.weight"}.get(leaf, leaf)
        if leaf == kinds.MAGNITUDE:
            leaf, tensor = "dora_scale", tensor.reshape(-1, *[1] * (3 if "conv" in module else 1))
        made[f"{key}.{leaf}"] = tensor
        if alpha is not None:
            made[f"{key}.alpha"] = torch.tensor(alpha)
    return made


@torch.no_grad()
def outputs(network):
    torch.manual_seed(3)
    x, tokens, vector = torch.randn(2, 2, 8, 8), torch.randn(2, 5, 8), torch.randn(2, 8)
    return network(x, torch.tensor([-0.5, 0.7]), Cond(tokens=tokens, vector=vector))


def put_on(model, state, folder, dtype=torch.float32, name="a"):
    file = folder / f"{name}.safetensors"
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in state.items()}, file)
    model.load_lora(file)
    return model


@pytest.fixture
def model():
    return small()


def test_the_inputs_tell_networks_apart(model):
    assert outputs(model.denoiser.network).shape == (2, 2, 8, 8)
    assert not torch.equal(outputs(model.denoiser.network), outputs(small(seed=1).denoiser.network))


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_computes_what_peft_computes(kind, dtype, alpha, model, tmp_path):
    network, state = theirs(model.denoiser.network, kind, dtype, alpha=alpha or (1 if kind == "lokr" else 2))
    before = outputs(model.denoiser.network)
    put_on(model, lycoris_names(state, alpha), tmp_path, dtype)
    assert (outputs(network) - before).abs().max() > 0.01, "an adapter that changes nothing proves nothing"
    torch.testing.assert_close(outputs(model.denoiser.network), outputs(network), atol=1e-5, rtol=0)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs(model.denoiser.network), outputs(network), atol=1e-5, rtol=0)
    model.unload_lora()
    assert torch.equal(outputs(model.denoiser.network), before)


@pytest.mark.parametrize("options", [{"use_effective_conv2d": True}, {"decompose_both": True, "r": 1}], ids=str)
def test_other_decompositions_compute_what_peft_computes(options, model, tmp_path):
    for kind in ("loha", "lokr"):
        if kind == "loha" and "decompose_both" in options:
            continue
        network, state = theirs(model.denoiser.network, kind, **({"r": 1} | options), alpha=2.0)
        assert any("_t2" in name or "w1_a" in name for name in state)
        put_on(model, lycoris_names(state, 2.0), tmp_path, name=kind)
        torch.testing.assert_close(outputs(model.denoiser.network), outputs(network), atol=1e-5, rtol=0)
        model.unload_lora()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_at_any_scale_and_unmerging_is_exact(kind, model, tmp_path):
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, state = theirs(model.denoiser.network, kind)
    put_on(model, lycoris_names(state, 3.0), tmp_path)
    model.scale_lora("a", 0.6)
    beside = outputs(model.denoiser.network)
    model.merge_lora()
    torch.testing.assert_close(outputs(model.denoiser.network), beside, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == plain.keys()
    model.unmerge_lora()
    assert torch.equal(outputs(model.denoiser.network), beside)
    model.scale_lora("a", 0.0)
    model.unload_lora()
    assert equal(model.state_dict(), plain)


def test_at_scale_0_every_kind_is_the_base(model, tmp_path):
    before = outputs(model.denoiser.network)
    for kind in KINDS:
        put_on(model, lycoris_names(theirs(small().denoiser.network, kind)[1]), tmp_path, name=kind)
    for kind in KINDS:
        model.scale_lora(kind, 0.0)
    assert torch.equal(outputs(model.denoiser.network), before)
    model.scale_lora("dora", 1.0)
    assert not torch.equal(outputs(model.denoiser.network), before)


def test_kinds_stack_on_one_layer_and_come_off_in_any_order(model, tmp_path):
    plain, before = outputs(model.denoiser.network), {k: v.clone() for k, v in model.state_dict().items()}
    for kind in ("lora", "lokr", "dora", "loha"):
        put_on(model, lycoris_names(theirs(small().denoiser.network, kind)[1], 1.0), tmp_path, name=kind)
    together = outputs(model.denoiser.network)
    model.merge_lora()
    torch.testing.assert_close(outputs(model.denoiser.network), together, atol=1e-5, rtol=0)
    model.unmerge_lora()
    torch.testing.assert_close(outputs(model.denoiser.network), together, atol=1e-6, rtol=0)
    for kind in ("lokr", "loha", "lora"):
        model.unload_lora(kind)
    alone = put_on(small(), lycoris_names(theirs(small().denoiser.network, "dora")[1], 1.0), tmp_path)
    torch.testing.assert_close(outputs(model.denoiser.network), outputs(alone.denoiser.network), atol=1e-6, rtol=0)
    model.unload_lora()
    assert torch.equal(outputs(model.denoiser.network), plain) and equal(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["lokr", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dora", "loha"))])
def test_what_is_trained_is_saved_and_goes_out_to_kohyas_tools_and_peft(kind, model, tmp_path):
    other = small()
    lora.start(other, "new", rank=2, alpha=3.0, wanted=["attention", "conv1"], kind=kind, alpha_pattern={"attn2": 1.0})
    assert torch.equal(outputs(other.denoiser.network), outputs(model.denoiser.network)), "it begins as the base"
    made = lora.trained(other, "new", None, {})
    torch.manual_seed(1)
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    trained = outputs(other.denoiser.network)
    assert len(set(made.alphas.values())) >= 2
    model.load_lora(ldm.save(made, tmp_path / "run"))
    torch.testing.assert_close(outputs(model.denoiser.network), trained, atol=1e-6, rtol=0)

    file = model.export_lora(tmp_path / "k.safetensors", to="kohya")
    signs = {"dora": "dora_scale", "loha": "hada_w1_a", "lokr": "lokr_w1"}
    assert all(name.startswith("lora_unet_") for name in load_file(file))
    assert any(name.endswith(signs[kind]) for name in load_file(file))
    folder = model.export_lora(tmp_path / "p", to="peft")
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(small().denoiser.network), folder).eval()
    torch.testing.assert_close(outputs(wrapped), trained, atol=1e-5, rtol=0)
    for path in (file, folder):
        fresh = small()
        fresh.load_lora(path)
        torch.testing.assert_close(outputs(fresh.denoiser.network), trained, atol=1e-5, rtol=0)
    if kind != "dora":
        with pytest.raises(UserError, match=f"diffusers reads LoRA and DoRA, and this is {kind}: to=peft"):
            model.export_lora(tmp_path / "d")


@pytest.mark.slow
def test_diffusers_computes_the_same_dora(tmp_path):
    from tests.interop.configs import UNETS
    from tests.interop.models import diffusers, randomised

    torch.manual_seed(0)
    unet = randomised(diffusers.UNet2DConditionModel(**UNETS["two levels"]))
    network, state = theirs(unet, "dora", alpha=3.0, target_modules=["to_q", "conv1"])
    modules = {kinds.split_leaf(name)[0] for name in state}
    given = kinds.Lora({f"unet.{n}": t for n, t in state.items()}, {f"unet.{m}": 3.0 for m in modules})
    formats.write(tmp_path / "pytorch_lora_weights.safetensors", given)
    again = copy.deepcopy(unet)
    again.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    x, t, tokens = torch.randn(1, 4, 8, 8), torch.tensor([100]), torch.randn(1, 5, 12)
    with torch.no_grad():
        wanted, plain = network(x, t, tokens).sample, unet(x, t, tokens).sample
        assert (wanted - plain).abs().max() > 0.01
        torch.testing.assert_close(again.eval()(x, t, tokens).sample, wanted, atol=1e-5, rtol=0)


def test_a_lokr_of_whole_matrices_has_no_alpha_in_kohyas_tools(model, tmp_path):
    w1, w2 = torch.randn(2, 2), torch.randn(8, 8)
    state = {f"lora_unet_{ATTENTION.replace('.', '_')}.{leaf}": t for leaf, t in (("lokr_w1", w1), ("lokr_w2", w2))}
    state[f"lora_unet_{ATTENTION.replace('.', '_')}.alpha"] = torch.tensor(10000.0)
    weight = model.denoiser.network.get_submodule(ATTENTION).weight.clone()
    put_on(model, state, tmp_path).merge_lora()
    changed = model.denoiser.network.get_submodule(ATTENTION).weight
    torch.testing.assert_close(changed - weight, torch.kron(w1, w2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("leaves", "says"),
    [
        ({"hada_w1_a": (16, 2), "hada_w1_b": (2, 16), "hada_w2_a": (16, 2)}, "missing .*hada_w2_b"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (8, 2)}, "missing .*lokr_w2_b"),
        ({"lokr_w1": (2, 2), "lokr_w2": (8, 8), "hada_w1_a": (16, 2)}, "unexpected .*lokr_w1"),
        ({"lokr_w1": (2, 2), "lokr_w2": (8, 9)}, r"is \(16, 16\), the LoRA's \(16, 18\)"),
        (
            {"lokr_w1": (2, 2), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)},
            "rank 2 according to lokr_w2_a, but 3 according to lokr_w2_b",
        ),
        ({"lora_down.weight": (2, 16), "lora_up.weight": (16, 2), "dora_scale": (1, 16)}, "magnitudes by input"),
        (
            {"lora_down.weight": (2, 16), "lora_up.weight": (16, 2), "dora_scale": (8, 1)},
            "8 magnitudes, but 16 outputs",
        ),
        ({"lokr_w1": (2, 2), "lokr_w2": (8, 8), "dora_scale": (16, 1)}, "unexpected .*lora_magnitude_vector"),
    ],
)
def test_tensors_that_are_none_of_these_are_refused(leaves, says, model, tmp_path):
    assert model.denoiser.network.get_submodule(ATTENTION).weight.shape == (16, 16)
    state = {f"lora_unet_{ATTENTION.replace('.', '_')}.{leaf}": torch.ones(shape) for leaf, shape in leaves.items()}
    with pytest.raises(UserError, match=says):
        put_on(model, state, tmp_path)
    assert not model.adapters and not list(layers.injected(model.denoiser.network))


def test_a_lycoris_log_of_the_kind_that_the_tensors_have_isnt_warned_of(model, tmp_path, caplog):
    _, state = theirs(model.denoiser.network, "loha")
    named = lycoris_names(state)
    for algorithm, warned in (("loha", False), ("lokr", True)):
        log = {"ss_network_args": f'{{"algo": "{algorithm}"}}', "ss_network_dim": "2", "ss_network_alpha": "2"}
        with_alpha = named | {name: t for name, t in lycoris_names(state, 2.0).items() if name.endswith("alpha")}
        save_file({name: t.contiguous() for name, t in with_alpha.items()}, tmp_path / f"{algorithm}.safetensors", log)
        model.load_lora(tmp_path / f"{algorithm}.safetensors")
        assert ("algo=lokr" in caplog.text) == warned
