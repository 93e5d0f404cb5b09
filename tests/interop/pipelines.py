"""Whole models, ours and diffusers' pipelines, that generate from the same noise, and how their images are compared."""

import functools

import torch

import ldm
from ldm.conditioning import Conditioner, FrozenText, JoinedText
from ldm.diffusion import Denoiser, Eps
from ldm.images import Preprocess
from ldm.model.generate import ImageNoise
from ldm.model.latent_diffusion import LatentDiffusion
from tests.interop.models import randomised

PROMPT = "a cat above a rocket"


def random_model(parts, parameterization=None, vae=None, sampling=None, **network):
    """A random model of ours whose images aren't flat."""
    torch.manual_seed(0)
    conditioner = Conditioner(parts)
    vae = vae or ldm.AutoencoderKL(3, 4, channels=8, multipliers=[1, 2])
    options = {"channels": 8, "heads": 2, "context_dim": conditioner.token_dim, "vector_dim": conditioner.vector_dim}
    unet = ldm.build({"class": "UNet", "in_channels": vae.latent_channels, **options, **network})
    preprocess = Preprocess(vae.in_channels, 16, 16)
    model = LatentDiffusion(vae, Denoiser(unet, parameterization or Eps()), conditioner, preprocess, sampling)
    randomised(model)
    model.latent_mean.copy_(torch.linspace(-1, 1, vae.latent_channels))
    model.latent_std.copy_(torch.linspace(0.5, 2, vae.latent_channels))
    return model.eval()


def frozen_text(folder, **options):
    encoder, words = str(folder / "text_encoder"), str(folder / "tokenizer")
    return FrozenText(encoder, words, **({"length": 16, "masked": False} | options))


def joined_text(folder):
    """Both encoders of Stable Diffusion XL, as its pipeline reads them."""
    read = {"length": 16, "masked": False, "clip_skip": 2, "final_norm": False}
    first = FrozenText(str(folder / "text_encoder"), str(folder / "tokenizer"), **read)
    read |= {"pooled": True, "projected": True}
    return JoinedText([first, FrozenText(str(folder / "text_encoder_2"), str(folder / "tokenizer_2"), **read)])


def generate(model, seeds=(0,), **options):
    """Our images (B, C, H, W) in [0, 1] and their whitened latents."""
    kept = []
    images = model(output="pt", seed=list(seeds), on_step=lambda i, n, denoised: kept.append(denoised), **options)
    return images.add(1) / 2, kept[-1]


def initial_noise(model, seeds=(0,)):
    """The standard normal noise that our images start from."""
    return ImageNoise(list(seeds), (model.first_stage.latent_channels, 8, 8), torch.device("cpu"))()


def assert_same_image(ours, theirs, latents, expected):
    error = (latents - expected).norm() / expected.norm()
    psnr = -10 * (ours - theirs).square().mean().log10()
    print(f"latents {error:.2e}, image {psnr:.1f} dB, std {theirs.std():.3f}")
    assert error < 1e-3
    assert theirs.std() > 0.05
    assert psnr > 45


def run_pipeline(pipe, latents, **options):
    """Images in [0, 1] of a diffusers pipeline, and the last latents of its scheduler."""
    pipe.set_progress_bar_config(disable=True)
    step, kept = pipe.scheduler.step, []

    @functools.wraps(step)  # pipelines read its signature
    def keep(*args, **kwargs):
        kept[:] = [step(*args, **kwargs)]
        return kept[0]

    pipe.scheduler.step = keep
    return pipe(latents=latents.clone(), output_type="pt", **options).images, kept[0][0]


def assert_reload_generates_same(model, folder, **options):
    """An exported model that is loaded generates what the model does."""
    (ours, _), (back, _) = (generate(one, steps=2, **options) for one in (model, ldm.load(folder)))
    torch.testing.assert_close(back, ours, atol=1e-4, rtol=0)
