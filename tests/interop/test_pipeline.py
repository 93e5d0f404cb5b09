"""Whole models: an exported one generates our image in diffusers, and an imported one generates that of diffusers."""

import json

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, FrozenText, Text
from ldm.conditioning.text import tokenizer
from ldm.diffusion import EDM, Eps, Flow, V
from ldm.images import Preprocess
from tests.interop.models import clip_config, diffusers, randomised, transformers, write_tokenizer
from tests.interop.pipelines import (
    PROMPT,
    assert_reload_generates_same,
    assert_same_image,
    frozen_text,
    generate,
    initial_noise,
    random_model,
    run_pipeline,
)

NEGATIVE = ""


@pytest.mark.parametrize("kind", [Eps, V])
@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        ("ddim", "DDIM"),
        ("dpmpp_2m", "DPMSolverMultistep"),
        ("unipc", "UniPCMultistep"),
        ("euler", "EulerDiscrete"),
        ("heun", "HeunDiscrete"),
    ],
)
def test_a_stock_text_model_generates_our_image_in_stable_diffusions_pipeline(
    sampler, name, kind, text_folder, tmp_path
):
    options = {"variant": "karras"} if sampler == "heun" else {}
    model = random_model({"text": frozen_text(text_folder)}, kind(), sampling={"sampler": sampler, **options})
    report = model.export(tmp_path / "out")
    assert report.stock, report
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert type(pipe.scheduler).__name__ == f"{name}Scheduler"

    sigma = model.denoiser.parameterization.sigma_max
    start = initial_noise(model)
    if pipe.scheduler.init_noise_sigma == 1:
        start = start * sigma / (1 + sigma**2) ** 0.5  # x_T = x / sqrt(1 + sigma^2)
    ours, latents = generate(model, prompt=PROMPT, steps=20, guidance=3.0, sampler=sampler)
    theirs, expected = run_pipeline(
        pipe, start, prompt=PROMPT, num_inference_steps=20, guidance_scale=3.0, height=16, width=16
    )
    assert_same_image(ours, theirs, latents, expected)

    assert_reload_generates_same(model, tmp_path / "out", prompt=PROMPT, guidance=3.0, sampler=sampler)


DIT = {"class": "DiT", "depth": 2}
DEMO_VAE = {"channels": 8, "multipliers": [1, 2], "stem": 2, "shortcut": True}
CUSTOM = {
    "the demo's: edm, stem, shortcut, own text, DiT": (EDM, "text", DEMO_VAE, DIT | {"patch": 2}),
    "edm, stem, shortcut, own text, patches": (EDM, "text", DEMO_VAE, {"patch": 2}),
    "flow, own text": (Flow, "text", {}, {}),
    "eps, class labels": (Eps, "label", {}, {}),
    "v, nothing said": (V, None, {}, {}),
    "edm, frozen text": (EDM, "frozen", {}, {}),
}


# an exported flow model has diffusers' Euler, which is DDIM here
DRAWN = [(n, s) for n, (kind, *_) in CUSTOM.items() for s in ("ddim", "dpmpp_2m") if kind is not Flow or s == "ddim"]


@pytest.mark.parametrize(("name", "sampler"), DRAWN)
def test_what_has_no_stock_class_generates_our_image_through_its_own(name, sampler, text_folder, tmp_path):
    kind, condition, vae, network = CUSTOM[name]
    words = tokenizer.train([PROMPT], 280)
    parts = {"text": lambda: Text(words, 32, 8, heads=2), "label": lambda: ClassLabel(5, list("abcde"), 8)}
    parts["frozen"] = lambda: frozen_text(text_folder, masked=True)
    column = "label" if condition == "label" else "text"
    made = {column: parts[condition]()} if condition else {}
    autoencoder = ldm.AutoencoderKL(3, 4, **vae) if vae else None
    if vae:
        network = network | {"channels": 8}
    model = random_model(made, kind(), autoencoder, {"sampler": sampler}, **network)
    if vae:
        model.preprocess = Preprocess(3, 32, 32)
    report = model.export(tmp_path / "out")
    assert not report.stock
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)

    given = {"text": {"prompt": [PROMPT, "a dog"]}, "label": {"labels": [3, "b"]}}[column] if condition else {}
    seeds = (0, 1) if condition else (0,)
    guidance = 2.0 if condition else 1.0
    ours, latents = generate(model, seeds, steps=20, guidance=guidance, **given)
    theirs, expected = run_pipeline(
        pipe, initial_noise(model, seeds), num_inference_steps=20, guidance_scale=guidance, **given
    )
    assert_same_image(ours, theirs, latents, expected)
    assert_reload_generates_same(model, tmp_path / "out", seeds=seeds, guidance=guidance, **given)


def test_the_pipeline_draws_from_generators_what_we_draw_from_seeds(tmp_path):
    model = random_model({"label": ClassLabel(5, dim=8)}, EDM())
    model.export(tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    ours, _ = generate(model, (7,), labels=[2], steps=4)
    theirs = pipe(
        labels=[2], num_inference_steps=4, generator=torch.Generator().manual_seed(7), output_type="pt"
    ).images
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert pipe(num_images_per_prompt=2, num_inference_steps=1).images[1].size == (16, 16)
    one, two = (
        pipe(labels=[2], num_inference_steps=1, latents=initial_noise(model), output_type=kind).images
        for kind in ("latent", "pt")
    )
    torch.testing.assert_close(pipe.vae.decode(one / pipe.vae.config.scaling_factor).sample.clamp(-1, 1) / 2 + 0.5, two)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A random StableDiffusionPipeline of diffusers, small, as a folder."""
    folder = tmp_path_factory.mktemp("sd") / "model"
    torch.manual_seed(0)
    text = randomised(transformers.CLIPTextModel(clip_config(layers=3)))
    vae = randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
    )
    unet = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        ),
        0.02,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    words = transformers.CLIPTokenizer.from_pretrained(write_tokenizer(folder.parent / "words"))
    parts = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": words, "scheduler": scheduler}
    pipe = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return folder, pipe


def test_a_stable_diffusion_pipeline_is_imported_and_generates_its_image(stable_diffusion):
    folder, pipe = stable_diffusion
    model = ldm.load(folder)
    assert model.sampling["sampler"] == "ddim" and model.sampling["guidance"] == 7.5
    sigma = model.denoiser.parameterization.sigma_max
    start = initial_noise(model) * sigma / (1 + sigma**2) ** 0.5
    ours, latents = generate(model, prompt=PROMPT, negative="a dog", steps=10)
    options = {"negative_prompt": "a dog", "num_inference_steps": 10, "height": 16, "width": 16}
    theirs, expected = run_pipeline(pipe, start, prompt=PROMPT, **options)
    assert_same_image(ours, theirs, latents, expected)


def test_stable_diffusion_is_exported_as_it_was_imported(stable_diffusion, tmp_path):
    from safetensors.torch import load_file

    folder, _ = stable_diffusion
    assert ldm.load(folder).export(tmp_path / "out").stock
    for part in ("unet", "vae"):
        before, after = (
            load_file(f / part / "diffusion_pytorch_model.safetensors") for f in (folder, tmp_path / "out")
        )
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "out/vae/config.json").read_text())["scaling_factor"] == pytest.approx(0.18215)


def test_a_model_with_a_frozen_encoder_is_saved_by_reference_or_bundled(text_folder, tmp_path):
    import shutil

    encoder = shutil.copytree(text_folder, tmp_path / "clip")
    model = random_model({"text": frozen_text(encoder)})
    expected = model(PROMPT, steps=2, output="pt")
    assert not any("text" in name for name in model.state_dict())
    ldm.save(model, tmp_path / "reference")
    assert torch.equal(ldm.load(tmp_path / "reference")(PROMPT, steps=2, output="pt"), expected)

    model.export(tmp_path / "bundle", to="ldm")
    shutil.rmtree(encoder)
    moved = shutil.move(tmp_path / "bundle", tmp_path / "moved")
    assert torch.equal(ldm.load(moved)(PROMPT, steps=2, output="pt"), expected)
    with pytest.raises(UserError, match="no text encoder"):
        ldm.load(tmp_path / "reference")(PROMPT, steps=2)


def test_another_encoder_than_the_one_trained_with_is_refused(text_folder, tmp_path):
    import shutil

    encoder = shutil.copytree(text_folder, tmp_path / "clip")
    path = str(encoder / "text_encoder")
    part = FrozenText(**FrozenText.derive(None, {"path": path}), tokenizer=str(encoder / "tokenizer"))
    randomised(transformers.CLIPTextModel(clip_config())).save_pretrained(path)
    with pytest.raises(UserError, match="SHA-256"):
        part(["a cat"])
