"""LoRAs and ControlNets on Stable Diffusion XL: diffusers' names and kohya's, on the U-Net and both text encoders."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.adapters import lora as adapters
from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.interop.lora import formats
from ldm.interop.lora.kohya_xl import kohya_names
from ldm.interop.parts.unet_config import from_diffusers
from tests.interop import sdxl
from tests.interop.models import diffusers, randomised
from tests.interop.pipelines import assert_same_image, generate, initial_noise, run_pipeline

pytest.importorskip("peft")
PROMPT = "a cat above a rocket"
TARGETS = (
    "attn1.to_q",
    "attn2.to_v",
    "to_out.0",
    "conv1",
    "downsamplers.0.conv",
    "q_proj",
    "fc1",
    "add_embedding.linear_1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sdxl.write_small(tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def base(folder):
    return ldm.load(folder)


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


@pytest.fixture(scope="module")
def adapter(base):
    """A LoRA of rank 2 and alpha 3 on the U-Net and on both encoders."""
    kinds = ("unet", "text_encoder", "text_encoder_2")
    parts = adapters.components(base, set(kinds))
    generator, weights = torch.Generator().manual_seed(3), {}
    for kind in kinds:
        for name in [n for n in formats.adaptable(parts[kind], kind) if n.endswith(TARGETS)]:
            w = parts[kind].get_submodule(name.removeprefix(f"{kind}.")).weight
            full = formats._canonical(name)
            weights[f"{full}.lora_A.weight"] = torch.randn(2, *w.shape[1:], generator=generator)
            weights[f"{full}.lora_B.weight"] = 0.05 * torch.randn(
                w.shape[0], 2, *[1] * (w.ndim - 2), generator=generator
            )
    return formats.Lora(weights, {name.rsplit(".lora_", 1)[0]: 3.0 for name in weights})


def start_of(model):
    sigma = model.denoiser.parameterization.sigma_max
    return initial_noise(model) * sigma / (1 + sigma**2) ** 0.5


def modules_of(model):
    parts = adapters.components(model, {"unet", "text_encoder", "text_encoder_2"})
    return [name for kind, part in parts.items() for name in formats.adaptable(part, kind)]


@pytest.mark.parametrize("to", formats.FORMATS)
def test_a_lora_in_either_format_generates_diffusers_image_and_comes_back_bit_equal(
    to, model, folder, adapter, tmp_path
):
    file = tmp_path / "pytorch_lora_weights.safetensors"
    formats.write(file, adapter, to, adapters.xl_modules(model))
    again = formats.read(file, modules_of(model))
    assert again.alphas == adapter.alphas
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in adapter.weights.items())
    if to == "kohya":  # of whose names for text encoders diffusers 0.42 takes those of the MLPs alone
        own = {name: tensor for name, tensor in adapter.weights.items() if ".self_attn." not in name}
        alphas = {name: alpha for name, alpha in adapter.alphas.items() if ".self_attn." not in name}
        formats.write(file, formats.Lora(own, alphas), to, adapters.xl_modules(model))
    plain, _ = generate(model, prompt=PROMPT, steps=5)
    model.load_lora(file)
    ours, latents = generate(model, prompt=PROMPT, steps=5)
    assert (ours - plain).std() > 0.01
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    theirs, expected = run_pipeline(pipe, start_of(model), prompt=PROMPT, num_inference_steps=5, height=16, width=16)
    assert_same_image(ours, theirs, latents, expected)


def test_kohyas_names_are_stability_ais_and_of_both_encoders(model, adapter, tmp_path):
    formats.write(tmp_path / "a.safetensors", adapter, "kohya", adapters.xl_modules(model))
    stems = {name.partition(".")[0] for name in load_file(tmp_path / "a.safetensors")}
    for stem in (
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_2_0_op",
        "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_v",
        "lora_unet_label_emb_0_0",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ):
        assert stem in stems
    assert all(stem.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for stem in stems)


@pytest.mark.slow
def test_at_full_size_kohyas_names_are_those_of_the_published_list():
    with torch.device("meta"):
        network = build(from_diffusers(sdxl.UNET))
    names = kohya_names(formats.adaptable(network))
    shapes = {}
    for ours, theirs in names.items():
        layer = network.get_submodule(ours.removeprefix("unet."))
        if not theirs.startswith(
            ("lora_unet_time_embed", "lora_unet_label", "lora_unet_out_", "lora_unet_input_blocks_0")
        ):
            w, ones = layer.weight.shape, (1,) * (layer.weight.ndim - 2)
            shapes |= {f"{theirs}.alpha": (), f"{theirs}.lora_down.weight": (-1, *w[1:])}
            shapes[f"{theirs}.lora_up.weight"] = (w[0], -1, *ones)
    assert len(sdxl.listed(shapes)) == sdxl.CHARACTERS["lora"]


def test_what_fits_no_layer_is_refused_by_name(model, adapter, tmp_path):
    formats.write(tmp_path / "a.safetensors", adapter, "kohya", adapters.xl_modules(model))
    state = load_file(tmp_path / "a.safetensors")
    save_file(state | {"lora_te3_x.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="unexpected lora_te3_x.lora_down.weight"):
        model.load_lora(tmp_path / "a.safetensors")


def test_the_second_encoder_can_be_changed_alone_and_isnt_merged(model, adapter, tmp_path):
    own = {name: tensor for name, tensor in adapter.weights.items() if name.startswith("text_encoder_2.")}
    alphas = {name: alpha for name, alpha in adapter.alphas.items() if name.startswith("text_encoder_2.")}
    formats.write(tmp_path / "a.safetensors", formats.Lora(own, alphas))
    before = model.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)})
    model.load_lora(tmp_path / "a.safetensors")
    after = model.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)})
    assert torch.equal(after.tokens[..., :16], before.tokens[..., :16])
    assert not torch.equal(after.tokens[..., 16:], before.tokens[..., 16:])
    assert not torch.equal(after.vector, before.vector)
    with pytest.raises(UserError, match="changes the frozen text encoder too"):
        model.merge_lora()
    model.unload_lora()
    assert torch.equal(model.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)}).vector, before.vector)


def test_a_lora_of_a_copy_leaves_the_models_own_encoders_alone(model, adapter, tmp_path):
    formats.write(tmp_path / "a.safetensors", adapter)
    before = model.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)})
    other = copy.deepcopy(model)
    other.load_lora(tmp_path / "a.safetensors")
    after = model.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)})
    assert torch.equal(after.tokens, before.tokens) and torch.equal(after.vector, before.vector)
    assert not torch.equal(other.conditioner({"text": [PROMPT], "frame": torch.ones(1, 6)}).tokens, before.tokens)


def test_a_controlnet_steers_it_as_in_diffusers(model, folder, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    randomised(net, 0.02).save_pretrained(tmp_path / "control")
    control = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    plain, _ = generate(model, prompt=PROMPT, steps=5)
    model.load_controlnet(tmp_path / "control")
    ours, latents = generate(model, prompt=PROMPT, steps=5, control=control * 2 - 1)
    assert (ours - plain).std() > 0.01
    parts = diffusers.DiffusionPipeline.from_pretrained(folder).components
    parts.pop("image_encoder"), parts.pop("feature_extractor")
    pipe = diffusers.StableDiffusionXLControlNetPipeline(controlnet=net, **parts)
    options = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 5.0, "image": control}
    theirs, expected = run_pipeline(pipe, start_of(model), prompt=PROMPT, controlnet_conditioning_scale=1.0, **options)
    assert_same_image(ours, theirs, latents, expected)

    assert model.export(tmp_path / "out").stock
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "StableDiffusionXLControlNetPipeline"
    back = again.controlnet.state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in net.state_dict().items())
    same, _ = generate(ldm.load(tmp_path / "out"), prompt=PROMPT, steps=5, control=control * 2 - 1)
    torch.testing.assert_close(same, ours, atol=1e-4, rtol=0)
