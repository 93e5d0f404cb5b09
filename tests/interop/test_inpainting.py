"""Inpainting models of diffusers, which read a mask and a masked image, and inpainting by any model, against
diffusers' pipelines."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import Inpaint
from tests.interop import sdxl
from tests.interop.configs import unet, vae
from tests.interop.models import clip_config, diffusers, randomised, transformers
from tests.interop.pipelines import initial_noise, random_model

PROMPT = "a cat, a fish"
WEIGHTS = "diffusion_pytorch_model.safetensors"
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 4:12, 6:14] = 1  # along the edges of latents, of 2 pixels


def scheduler(**options):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    usual = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing", "steps_offset": 1}
    return diffusers.DDIMScheduler(**betas, **usual | options)


def write_inpainting(folder, text_folder, channels=9, **options):
    """A random StableDiffusionInpaintPipeline of 16x16 whose U-Net reads `channels`."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (32, 32), "norm_num_groups": 32, "attention_head_dim": 8}
    network = unet("CrossAttn", "", in_channels=channels, out_channels=4, cross_attention_dim=16, **sizes)
    pipe = diffusers.StableDiffusionInpaintPipeline(
        unet=randomised(diffusers.UNet2DConditionModel(**network), 0.02),
        vae=randomised(diffusers.AutoencoderKL(**vae(32, 32, norm_num_groups=32, scaling_factor=0.18215))),
        scheduler=scheduler(**options),
        text_encoder=quick_gelu(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(text_folder / "tokenizer"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def quick_gelu():
    config = clip_config()
    config.hidden_act = "quick_gelu"
    encoder = transformers.CLIPTextModel(config)
    return randomised(encoder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_folder):
    return write_inpainting(tmp_path_factory.mktemp("inpainting") / "model", text_folder)


@pytest.fixture(scope="module")
def model(folder):
    return ldm.load(folder)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A random StableDiffusionXLInpaintPipeline."""
    root = sdxl.write_small(tmp_path_factory.mktemp("xl") / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(root)
    config = {**pipe.unet.config, "in_channels": 9}
    torch.manual_seed(0)
    parts = {**pipe.components, "unet": randomised(diffusers.UNet2DConditionModel.from_config(config), 0.02)}
    shutil.rmtree(root)
    diffusers.StableDiffusionXLInpaintPipeline(**parts).save_pretrained(root)
    return root


def psnr_inside(folder, model, pipeline=None, strength=1.0, steps=4, **options):
    """How well our image agrees with that of the folder's pipeline where something new is generated, in dB."""
    pipe = (pipeline or diffusers.DiffusionPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    ours = model(PROMPT, image=IMAGE, mask=MASK, strength=strength, steps=steps, output="pt", guidance=5.0, **options)
    encode = pipe.vae.encode  # whose mean we take, where diffusers draws from the posterior
    pipe.vae.encode = lambda images: SimpleNamespace(latents=encode(images).latent_dist.mode())
    sigma = model.denoiser.parameterization.sigma_max
    noise: dict = {"generator": torch.Generator().manual_seed(0)}
    if strength == 1:  # x_T = x / sqrt(1 + sigma^2)
        noise = {"latents": initial_noise(model) * sigma / (1 + sigma**2) ** 0.5}
    sides = {"height": 16, "width": 16, "num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "pt"}
    theirs = pipe(PROMPT, image=IMAGE, mask_image=MASK, strength=strength, **noise, **sides).images
    inside = MASK.expand_as(IMAGE) == 1
    assert theirs[inside].std() > 0.05 and torch.equal(ours[~inside], IMAGE[~inside])
    return -10 * (ours / 2 + 0.5 - theirs)[inside].square().mean().log10().item()


def test_an_inpainting_model_comes_in_and_fills_as_diffusers_does(folder, model):
    part = model.conditioner.parts["inpaint"]
    assert isinstance(part, Inpaint) and model.fills and part.concat_channels == 5
    assert psnr_inside(folder, model) > 60


def test_stable_diffusion_xls_comes_in_and_fills_as_diffusers_does(xl):
    model = ldm.load(xl)
    assert list(model.conditioner.parts) == ["text", "size", "inpaint"] and model.sampling["guidance"] == 7.5
    assert psnr_inside(xl, model) > 60


def test_without_an_image_everything_is_hidden(model):
    """As if a grey image were given, all of which is hidden."""
    grey = model(PROMPT, image=torch.zeros(1, 3, 16, 16), mask=torch.ones(1, 1, 16, 16), steps=2, output="pt")
    assert torch.equal(model(PROMPT, steps=2, output="pt"), grey) and grey.std() > 0.05


def test_it_goes_out_as_it_came_in(folder, model, tmp_path):
    assert model.export(tmp_path / "out").stock
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    for file in (f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"):
        before, after = load_file(folder / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before), file
    assert "mask_image=MASK" in (tmp_path / "out/README.md").read_text()


def test_a_single_file_of_it_is_read_by_us_and_by_diffusers(folder, model, tmp_path):
    model.export(tmp_path / "one.safetensors", "single_file")
    back = ldm.load(tmp_path / "one.safetensors", text_encoder=str(folder))
    options = {"image": IMAGE, "mask": MASK, "steps": 2, "output": "pt", "sampler": "ddim"}
    ours = model(PROMPT, **options)
    torch.testing.assert_close(back(PROMPT, **options), ours, atol=1e-5, rtol=0)
    opened = diffusers.StableDiffusionInpaintPipeline.from_single_file(
        tmp_path / "one.safetensors", config=str(folder), local_files_only=True
    )
    written = load_file(folder / "unet" / WEIGHTS)
    assert all(torch.equal(written[name], tensor) for name, tensor in opened.unet.state_dict().items())
    assert list(ldm.load(tmp_path / "one.safetensors").conditioner.parts) == ["inpaint"]  # without a tokenizer


@pytest.mark.slow
def test_stable_diffusion_xls_goes_out_in_both_forms(xl, tmp_path):
    model = ldm.load(xl)
    model.export(tmp_path / "out")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "StableDiffusionXLInpaintPipeline"
    model.export(tmp_path / "one.safetensors", "single_file")
    back = ldm.load(tmp_path / "one.safetensors", text_encoder=str(xl))
    for one, two in ((model.denoiser.network, back.denoiser.network), (model.first_stage, back.first_stage)):
        assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    options = {"image": IMAGE, "mask": MASK, "steps": 2, "output": "pt", "sampler": "ddim", "guidance": 5.0}
    torch.testing.assert_close(back(PROMPT, **options), model(PROMPT, **options), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("channels", "says"), [(8, "reads 8 channels, 4 in addition to the latents"), (5, "reads 5 channels")]
)
def test_other_channels_are_refused_by_their_number(channels, says, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "unet/config.json").read_text()) | {"in_channels": channels}
    (copy / "unet/config.json").write_text(json.dumps(config))
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(UserError, match=says):
        ldm.load(copy)


def test_masks_of_shares_are_refused_and_a_layout_is_named(folder, tmp_path):
    model = ldm.load(folder)
    model.conditioner.parts["inpaint"].layout = "share"
    for to, out in (("diffusers", tmp_path / "out"), ("single_file", tmp_path / "one.safetensors")):
        with pytest.raises(UserError, match="conditioner.inpaint.layout=stable_diffusion"):
            model.export(out, to)
        assert not out.exists()


@pytest.mark.parametrize("options", [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {}])
def test_any_model_inpaints_as_diffusers_does_from_where_both_start_alike(options, text_folder, tmp_path):
    """From noise alone both start alike only where it holds nothing of the image; from less noise always."""
    folder = write_inpainting(tmp_path / "model", text_folder, channels=4, **options)
    model = ldm.load(folder)
    assert not model.fills
    if options:
        assert psnr_inside(folder, model) > 45
    assert psnr_inside(folder, model, strength=0.5) > 45


def test_a_model_trained_here_with_this_layout_goes_out(text_folder, tmp_path):
    from tests.interop.pipelines import frozen_text

    part = Inpaint(4, 2, [16, 16], layout="stable_diffusion")
    model = random_model({"text": frozen_text(text_folder), "inpaint": part}, concat_channels=5)
    assert model.export(tmp_path / "out").stock
    assert ldm.load(tmp_path / "out").fills


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "xl"])
def test_with_a_controlnet_it_goes_out_as_one_pipeline_and_fills_as_that_does(kind, request, tmp_path):
    """The ControlNet is of latents alone, as those are that people have."""
    model = ldm.load(root := request.getfixturevalue(kind))
    config = {**diffusers.UNet2DConditionModel.load_config(root / "unet"), "in_channels": 4}
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel.from_config(config)
    net = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16))
    randomised(net, 0.02).save_pretrained(tmp_path / "control")
    plain = model(PROMPT, image=IMAGE, mask=MASK, steps=2, output="pt")
    model.load_controlnet(tmp_path / "control")
    control = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    options = {"image": IMAGE, "mask": MASK, "steps": 2, "output": "pt", "control": control * 2 - 1}
    ours = model(PROMPT, **options)
    assert (ours - plain).std() > 1e-3
    model.export(tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    name = "StableDiffusionXLControlNetInpaintPipeline" if kind == "xl" else "StableDiffusionControlNetInpaintPipeline"
    assert type(pipe).__name__ == name
    torch.testing.assert_close(ldm.load(tmp_path / "out")(PROMPT, **options), ours, atol=1e-4, rtol=0)
