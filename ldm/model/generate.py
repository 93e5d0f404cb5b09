"""Generation: from a request to images, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.common.annotations import check_arguments
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.diffusion import get_sampler, guided, resolution_shift
from ldm.diffusion.inpainting import keeping
from ldm.diffusion.samplers import DenoiseFn
from ldm.model.autoguidance import autoguided
from ldm.model.distilled import terms_of
from ldm.model.inputs import fills
from ldm.model.latent_space import finite
from ldm.model.request import Request, seeds_of
from ldm.networks import Autoencoder
from ldm.networks.attention import constant_contexts
from ldm.networks.first_stages.base import check_size

OnStep = Callable[[int, int, Tensor], None]  # (step, number of steps, denoised latents)


class ImageNoise:
    """Standard normal noise (B, *shape). Each row has its own generator on the CPU, so that it is the same on all
    devices."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device):
        self.generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        return send(noise, self.device)


@torch.no_grad()
def generate(model: Any, request: Request, batch_size: int = 32, on_step: OnStep | None = None) -> Tensor:
    """The images (N, C, H, W) in [-1, 1] for a request. Raises UserError for values that aren't finite."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: has to be at least 1.")
    batches = torch.arange(len(request.seeds)).split(batch_size)
    return finite(torch.cat([generate_batch(model, request.take(rows), on_step) for rows in batches]))


def generate_batch(model: Any, request: Request, on_step: OnStep | None = None) -> Tensor:
    """The images (B, C, H, W) of one batch, sampled from noise or from the initial image with noise, and decoded."""
    height, width = (side // model.first_stage.factor for side in request.size)
    noise = ImageNoise(request.seeds, (model.first_stage.latent_channels, height, width), model.latent_mean.device)
    sigmas = sigmas_of(model, request)
    denoise = denoiser_of(model, request, sigmas)
    first = noise()  # (B, C, h, w)
    x = first * sigmas[0].item()
    initial = request.initial
    if initial is not None:
        known = model.encode(initial.image)
        x = x + (known if initial.strength < 1 else 0)
        if initial.mask is not None and not fills(model):
            denoise = keeping(denoise, known, initial.kept_latents(known.shape[2:]), first)
    if len(sigmas) > 1:
        run = get_sampler(request.sampling.sampler, **request.sampling.options)
        with constant_contexts():
            x = run(denoise, x, sigmas, noise=lambda _: noise(), on_step=on_step)
    images = model.decode(x)
    return images if initial is None else initial.paste(images)


def sigmas_of(model: Any, request: Request) -> Tensor:
    """The noise levels (N + 1,) of the steps, starting at the level for the initial image's strength."""
    sampling, shift = request.sampling, request.sampling.shift
    if shift == "auto":  # relative to the size of the training data
        trained = model.preprocess.height * model.preprocess.width
        shift = resolution_shift(request.size[0] * request.size[1], trained)
    strength = 1.0 if request.initial is None else request.initial.strength
    return model.denoiser.parameterization.grid(sampling.steps, sampling.spacing, shift, strength)


def denoiser_of(model: Any, request: Request, sigmas: Tensor) -> DenoiseFn:
    """The model's `denoise(x, sigma)` under the request's conditions, ControlNets and guidance."""
    sampling = request.sampling
    denoiser = model.denoiser.around(model.coding.network(model.denoiser.network), model.dtype)
    terms = terms_of(
        model.denoiser.network, request.conditions, sampling.guidance, encode=model.encode, seeds=request.seeds
    )
    if request.control is not None:
        denoiser, terms = request.control.put_on(denoiser, terms, sigmas, sampling.guidance)
    terms = terms.map(lambda cond: cond.lowered(model.dtype))
    denoise = guided(denoiser, terms, interval=sampling.interval, rescale=sampling.rescale)
    scale, interval = sampling.autoguidance, sampling.interval
    return autoguided(model, denoise, request.guide, scale=scale, interval=interval, seeds=request.seeds)


@check_arguments
@torch.no_grad()
def sample_prior(vae: Autoencoder, n: int, size: tuple[int, int], seed: int = 0, batch_size: int = 64) -> Tensor:
    """`n` images (n, C, H, W) in [-1, 1], decoded from z ~ N(0, I), or from codes chosen uniformly, as an autoencoder
    alone generates them."""
    check_size(*size, vae.factor)
    shape = (vae.latent_channels, size[0] // vae.factor, size[1] // vae.factor)
    device, seeds = next(vae.parameters()).device, seeds_of(seed, n)
    batches = [seeds[i : i + batch_size] for i in range(0, n, batch_size)]
    images = [finite(vae.decode(vae.prior(ImageNoise(some, shape, device)()))) for some in batches]
    return torch.cat(images).clamp(-1, 1)
