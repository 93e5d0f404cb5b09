"""Distilled models exported to diffusers and imported from there, with the noise of each step injected."""

import pytest
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete, scheduling_lcm

import ldm
from ldm.conditioning import Text
from ldm.conditioning.text import tokenizer
from ldm.diffusion import Eps, Flow, V
from ldm.model.generate import ImageNoise
from tests.interop.models import clip_config, diffusers, randomised, transformers, write_tokenizer
from tests.interop.pipelines import (
    PROMPT,
    assert_reload_generates_same,
    assert_same_image,
    frozen_text,
    generate,
    random_model,
    run_pipeline,
)

LCM = {"sampler": "lcm", "steps": 4}


@pytest.fixture
def injected(monkeypatch):
    """Makes schedulers take the noise that our image of seed 0 gets; gives what it starts from."""

    def inject(model):
        noise = ImageNoise([0], (model.first_stage.latent_channels, 8, 8), torch.device("cpu"))
        for module in (scheduling_lcm, scheduling_flow_match_euler_discrete):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise())
        return noise()

    return inject


def variance_preserving(start: torch.Tensor, model) -> torch.Tensor:
    sigma = model.denoiser.parameterization.grid(4, model.sampling.get("spacing"))[0].item()
    return start * sigma / (1 + sigma**2) ** 0.5


@pytest.mark.parametrize(
    ("kind", "guidance_dim", "spacing", "name"),
    [
        (Eps, 256, "lcm", "LatentConsistencyModelPipeline"),
        (V, 256, None, "LatentConsistencyModelPipeline"),
        (Eps, None, None, "StableDiffusionPipeline"),
    ],
)
def test_a_stock_student_is_diffusers_own(kind, guidance_dim, spacing, name, text_folder, tmp_path, injected):
    scale = 3.0 if guidance_dim else 1.0
    sampling = {**LCM, "spacing": spacing, "guidance": scale}
    model = random_model({"text": frozen_text(text_folder)}, kind(), sampling=sampling, guidance_dim=guidance_dim)
    assert model.export(tmp_path / "out").stock
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == name and type(pipe.scheduler).__name__ == "LCMScheduler"
    ours, latents = generate(model, prompt=PROMPT)
    start = variance_preserving(injected(model), model)
    options = {"num_inference_steps": 4, "guidance_scale": scale, "height": 16, "width": 16}
    assert_same_image(ours, *expected_of(pipe, start, latents, prompt=PROMPT, **options))
    if guidance_dim:
        assert (generate(model, prompt=PROMPT, guidance=1.0)[0] - ours).abs().max() > 1e-2
    assert_reload_generates_same(model, tmp_path / "out", prompt=PROMPT, guidance=scale)
    back = ldm.load(tmp_path / "out")
    assert back.sampling["sampler"] == "lcm" and back.sampling["steps"] == 4
    assert back.sampling["guidance"] == (8.5 if guidance_dim else 1.0)


def expected_of(pipe, start, latents, **options):
    theirs, expected = run_pipeline(pipe, start, **options)
    return theirs, latents, expected


@pytest.mark.parametrize("network", [{}, {"class": "DiT", "depth": 1}])
def test_a_flow_leaves_with_a_pipeline_of_its_own(network, tmp_path, injected):
    text = Text(tokenizer.train([PROMPT], 280), 32, 8, heads=2)
    sampling = {**LCM, "guidance": 3.0}
    model = random_model({"text": text}, Flow(), sampling=sampling, guidance_dim=16, **network)
    assert not model.export(tmp_path / "out").stock
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ours, latents = generate(model, prompt=PROMPT)
    assert_same_image(ours, *expected_of(pipe, injected(model), latents, prompt=PROMPT))
    assert_reload_generates_same(model, tmp_path / "out", prompt=PROMPT)


def test_a_random_latent_consistency_model_comes_in(tmp_path, injected):
    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(**blocks, up_block_types=("UpDecoderBlock2D",) * 2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        time_cond_proj_dim=64,
    )
    words = transformers.CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path / "words"))
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=randomised(vae),
        text_encoder=randomised(transformers.CLIPTextModel(clip_config())),
        tokenizer=words,
        unet=randomised(unet, 0.02),
        scheduler=diffusers.LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(tmp_path / "lcm")
    model = ldm.load(tmp_path / "lcm")
    assert model.sampling["guidance"] == 8.5 and model.distilled == {"steps": 50}
    ours, latents = generate(model, prompt=PROMPT, guidance=2.0)
    start = variance_preserving(injected(model), model)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "height": 16, "width": 16}
    theirs, expected = run_pipeline(pipe, start, prompt=PROMPT, **options)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
