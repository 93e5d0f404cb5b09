"""Small models whose outputs are never constant."""

import torch

import ldm
from ldm.conditioning.text import tokenizer
from ldm.diffusion import Flow
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion

PROMPTS = ["a cat", "a dog above a very small rocket", "", "a fish on a blue background"]


def small(seed: int = 0, width: int = 8) -> LatentDiffusion:
    """A model of 8x8 pixels with the built-in text encoder; the same for the same seed."""
    torch.manual_seed(seed)
    text = ldm.Text(tokenizer.train(PROMPTS, 280), length=40, dim=8, depth=1, heads=2)
    conditioner = ldm.Conditioner({"text": text})
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1])
    network = ldm.UNet(
        2, channels=[width, 2 * width], heads=2, context_dim=conditioner.token_dim, vector_dim=conditioner.vector_dim
    )
    model = LatentDiffusion(vae, ldm.Denoiser(network, Flow()), conditioner, Preprocess(1, 8, 8), {"steps": 2})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def generated_latents(model: LatentDiffusion, **options) -> torch.Tensor:
    """Latents of two generated images, which aren't clamped as pixels are."""
    decode, model.decode = model.decode, lambda latents: latents
    try:
        return model(["a cat", "a fish above a rocket"], output="pt", **options)
    finally:
        model.decode = decode


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
