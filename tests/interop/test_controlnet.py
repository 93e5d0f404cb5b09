"""ControlNets: what diffusers computes is what ours computes, both ways, and weights come back bit-equal."""

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.common.errors import UserError
from ldm.interop.export import export
from ldm.interop.parts import controlnet_config
from ldm.networks import Cond, ControlNet
from tests.interop.configs import CROSS, PLAIN, UNETS, unet
from tests.interop.models import diffusers, randomised
from tests.interop.parts import assert_same_weights, unet_inputs
from tests.interop.pipelines import (
    PROMPT,
    assert_same_image,
    frozen_text,
    generate,
    initial_noise,
    random_model,
    run_pipeline,
)

_NOT = ("sample_size", "out_channels", "up_block_types")


def config(*levels, **options):
    return {key: value for key, value in unet(*levels, **options).items() if key not in _NOT}


CONTROLNETS = {
    name: {key: value for key, value in options.items() if key not in _NOT}
    for name, options in UNETS.items()
    if name not in ("vector", "inpainting")
} | {
    "hint of four": config(CROSS, PLAIN, conditioning_channels=4),
    "hint widths of factor 4": config(CROSS, PLAIN, conditioning_embedding_out_channels=(6, 10, 12)),
    "inpainting": config(CROSS, PLAIN, in_channels=9),
}


def small(options):
    return {"conditioning_embedding_out_channels": (4, 6, 8, 10)} | options


def close(a, b):
    assert b.std() > 0.05, "a flat output proves nothing"
    torch.testing.assert_close(a, b, atol=1e-5 * max(1, b.abs().max().item()), rtol=0)


@torch.no_grad()
def outputs(ours, theirs):
    x, t, tokens, vector, labels = unet_inputs(theirs.config)
    factor = 2 ** (len(theirs.config.conditioning_embedding_out_channels) - 1)
    hint = torch.rand(2, theirs.config.conditioning_channels, 8 * factor, 8 * factor)
    down, middle = theirs(x, t, tokens, hint, class_labels=labels, return_dict=False)
    return ours(x, t, Cond(vector=vector, tokens=tokens), hint), [*down, middle]


def all_close(ours, theirs):
    a, b = outputs(ours, theirs)
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        close(one, two)


@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnet_of_diffusers_is_imported_and_exported(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.ControlNetModel(**small(CONTROLNETS[name])))
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    all_close(ours, theirs)

    assert export(ours, tmp_path / "out").stock
    assert_same_weights(tmp_path / "in", tmp_path / "out")
    all_close(ours, diffusers.ControlNetModel.from_pretrained(tmp_path / "out"))


def test_there_are_twelve_configurations_and_more():
    assert len(CONTROLNETS) >= 12


@pytest.mark.parametrize("name", ["sd 1", "sd 2", "class table", "one level", "three levels"])
def test_compvis_names_are_one_to_one_and_come_back_bit_equal(name, tmp_path):
    torch.manual_seed(0)
    options = CONTROLNETS[name] | {"norm_num_groups": 32}
    options["block_out_channels"] = tuple(64 * (i + 1) for i in range(len(options["down_block_types"])))
    linear = options.get("use_linear_projection")
    options["attention_head_dim"] = tuple(range(1, 9))[: len(options["block_out_channels"])] if linear else 8
    ours = ControlNet(ldm.build(controlnet_config.from_diffusers(small(options))["network"]), hint_widths=[4, 6, 8, 10])
    state = controlnet_config.to_compvis(randomised(ours))
    assert f"{controlnet_config.COMPVIS}input_hint_block.14.weight" in state
    assert f"{controlnet_config.COMPVIS}zero_convs.0.0.weight" in state
    assert f"{controlnet_config.COMPVIS}middle_block_out.0.bias" in state
    save_file(state, tmp_path / "control.safetensors")
    again = ldm.load(tmp_path / "control.safetensors")
    assert isinstance(again, ControlNet)
    own = ours.state_dict()
    assert own.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    x, t, hint = torch.randn(1, 4, 8, 8), torch.tensor([3.0]), torch.rand(1, 3, 64, 64)
    cond = Cond(vector=torch.ones(1, 5) if ours.vector_dim else None, tokens=torch.randn(1, 3, 12))
    with torch.no_grad():
        for a, b in zip(ours(x, t, cond, hint), again(x, t, cond, hint), strict=True):
            close(a, b)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "bgr"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
    ],
)
def test_what_cant_be_represented_is_refused_by_name(setting, message):
    with pytest.raises(UserError, match=message):
        controlnet_config.from_diffusers(CONTROLNETS["two levels"] | setting)


def test_what_diffusers_has_no_class_for_is_refused_by_name(tmp_path):
    net = ControlNet(ldm.UNet(4, channels=8, heads=2, vector_dim=3, patch=2), factor=6)
    with pytest.raises(UserError, match="no context.*patch=2.*vector of conditions.*isn't a power of two"):
        export(net, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.6, "start": 0.2, "end": 0.7}, {"guess": True}],
    ids=["plain", "in some steps", "guess mode"],
)
def test_it_steers_stable_diffusions_pipeline_as_it_does_ours(options, text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)}, sampling={"sampler": "ddim"})
    net = randomised(ControlNet(model.denoiser.network, factor=2))
    model.export(tmp_path / "model")
    export(net, tmp_path / "control")
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        tmp_path / "model", controlnet=diffusers.ControlNetModel.from_pretrained(tmp_path / "control")
    )
    hint, sigma = torch.rand(1, 3, 16, 16), model.denoiser.parameterization.sigma_max
    theirs, expected = run_pipeline(
        pipe,
        initial_noise(model) * sigma / (1 + sigma**2) ** 0.5,
        prompt=PROMPT,
        image=hint,
        num_inference_steps=10,
        guidance_scale=3.0,
        height=16,
        width=16,
        controlnet_conditioning_scale=options.get("scale", 1.0),
        control_guidance_start=options.get("start", 0.0),
        control_guidance_end=options.get("end", 1.0),
        guess_mode=options.get("guess", False),
    )
    requested = {"prompt": PROMPT, "steps": 10, "guidance": 3.0, "sampler": "ddim"}
    plain, _ = generate(model, **requested)
    model.load_controlnet(tmp_path / "control")
    named = {key: options[k] for k, key in _OURS.items() if k in options}
    ours, latents = generate(model, **requested, control=hint, **named)
    assert_same_image(ours, theirs, latents, expected)
    assert (ours - plain).abs().max() > 0.02


def test_with_its_base_it_is_exported_and_imported_as_one_pipeline(text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)}, sampling={"sampler": "ddim"})
    export(randomised(ControlNet(model.denoiser.network, factor=2)), tmp_path / "control")
    model.load_controlnet(tmp_path / "control")
    assert model.export(tmp_path / "both").stock
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "both")
    assert type(pipe).__name__ == "StableDiffusionControlNetPipeline"

    hint, sigma = torch.rand(1, 3, 16, 16), model.denoiser.parameterization.sigma_max
    start = initial_noise(model) * sigma / (1 + sigma**2) ** 0.5
    options = {"num_inference_steps": 10, "guidance_scale": 3.0, "height": 16, "width": 16}
    theirs, expected = run_pipeline(pipe, start, prompt=PROMPT, image=hint, **options)
    for one in (model, ldm.load(tmp_path / "both")):
        ours, latents = generate(one, prompt=PROMPT, steps=10, guidance=3.0, control=hint)
        assert_same_image(ours, theirs, latents, expected)

    (tmp_path / "both" / "controlnet" / "config.json").unlink()
    with pytest.raises(UserError, match="both isn't whole: model_index.json names controlnet, which isn't there"):
        ldm.load(tmp_path / "both")


def test_with_a_base_or_another_that_no_stock_pipeline_takes_it_is_refused_and_nothing_is_left(text_folder, tmp_path):
    stock, own = (
        random_model({"text": frozen_text(text_folder)}),
        random_model({"text": frozen_text(text_folder, masked=True)}),
    )
    export(ControlNet(stock.denoiser.network, factor=2), tmp_path / "control")
    own.load_controlnet(tmp_path / "control")
    stock.load_controlnet(tmp_path / "control")
    stock.load_controlnet(tmp_path / "control", name="second")
    for model, message in ((own, "masked"), (stock, "there are 2 of them")):
        with pytest.raises(UserError, match=f"{message}.*Export each alone"):
            model.export(tmp_path / "both")
        assert not (tmp_path / "both").exists()
    with pytest.raises(UserError, match="would be lost"):
        own.export(tmp_path / "both", to="ldm")


_OURS = {"scale": "control_scale", "start": "control_start", "end": "control_end", "guess": "guess_mode"}


def test_weights_less_those_of_a_base_are_refused(tmp_path):
    """A1111's ControlNets of this kind hold an empty tensor `difference` as a mark."""
    net = ControlNet(ldm.UNet(4, channels=[8, 8], heads=1, context_dim=8), factor=2, hint_widths=[4, 6])
    state = {name: tensor.contiguous() for name, tensor in controlnet_config.to_compvis(net).items()}
    save_file(state | {"difference": torch.zeros(0)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="difference, which isn't supported"):
        ldm.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_controlnet", "a Control-LoRA"),
        ("lllite_unet_x.down.0.weight", "a ControlNet-LLLite"),
        ("adapter.body.0.block1.weight", "a T2I-Adapter"),
        ("controlnet_cond_embedding.conv_in.weight", "under diffusers' names, without its settings.*config.json"),
        ("lora_unet_x.lora_down.weight", "a LoRA: load it with load_lora"),
        ("surprise", "holds surprise, which isn't a supported adapter"),
    ],
)
def test_adapters_of_other_kinds_are_named(name, message, tmp_path):
    from ldm.adapters import adapter

    save_file({name: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        adapter.read(tmp_path / "a.safetensors")
