"""What the networks of both projects are timed at: a training step, and generating."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.contenders import CLASSES, Case
from benchmarks.paired import Call, stepper
from benchmarks.vae_loss import loss_of
from ldm.diffusion import Denoiser, Eps, classifier_free, guided
from ldm.diffusion.samplers import ddim
from ldm.networks import Cond
from ldm.networks.attention import constant_contexts

GUIDANCE = 5.0
Forward = Callable[[Any, Tensor, Tensor, Any], Tensor]  # (network, x, t, condition)


def forward(kind: str, who: str) -> Forward:
    """How a network of this kind is called with x, noise levels and a condition."""
    calls: dict[tuple[str, str], Forward] = {
        ("unet", "ours"): lambda net, x, t, given: net(x, t, Cond(tokens=given)),
        ("unet", "diffusers"): lambda net, x, t, given: net(x, t, given).sample,
        ("dit", "ours"): lambda net, x, t, given: net(x, t, Cond(vector=given)),
        ("dit", "diffusers"): lambda net, x, t, given: net(x, timestep=t, class_labels=given).sample,
    }
    return calls[kind, who]


def condition(case: Case, who: str, batch: int, device: torch.device) -> Tensor:
    if case.kind == "unet":
        return torch.randn(batch, *case.tokens, device=device)
    if who == "diffusers":
        return torch.randint(CLASSES, (batch,), device=device)
    return torch.randn(batch, case.tokens[1], device=device)


def training(case: Case, who: str, network: nn.Module, batch: int, device: torch.device, dtype: torch.dtype) -> Call:
    """A whole step in mixed precision with a fused AdamW, for both alike. No average, clipping, data or log."""
    x = torch.randn(batch, 3 if case.kind == "vae" else 4, case.side, case.side, device=device)
    if case.kind == "vae":
        compute = autoencoding(who, network, x)
    else:
        t, given = torch.rand(batch, device=device) * 999, condition(case, who, batch, device)
        call = forward(case.kind, who)

        def compute() -> Tensor:
            return call(network, x, t, given).float().square().mean()

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return compute()

    return stepper(network, loss, fused=True)


def autoencoding(who: str, network: Any, images: Tensor) -> Callable[[], Tensor]:
    def ours() -> Tensor:
        reconstruction, posterior = network(images)
        return loss_of(reconstruction.float(), posterior.mean, 2 * posterior.std.log(), images)

    def theirs() -> Tensor:
        posterior = network.encode(images).latent_dist
        decoded = network.decode(posterior.sample()).sample
        return loss_of(decoded.float(), posterior.mean, posterior.logvar, images)

    return ours if who == "ours" else theirs


def generating(case: Case, who: str, network: Any, batch: int, device: torch.device, dtype: torch.dtype) -> Call:
    """Steps of DDIM with guidance, all in `dtype`, without text encoder and decoder; of an autoencoder, its
    decoder. The network is in `dtype` already."""
    if case.kind == "vae":
        latents = torch.randn(batch, 4, case.side // 8, case.side // 8, device=device, dtype=dtype)
        run = (lambda: network.decode(latents)) if who == "ours" else (lambda: network.decode(latents).sample)
    else:
        x = torch.randn(batch, 4, case.side, case.side, device=device)
        given = [condition(case, who, batch, device) for _ in range(2)]
        given = [one.to(dtype) if one.is_floating_point() else one for one in given]
        run = (own_ddim if who == "ours" else their_ddim)(case, network, x, given, dtype)

    def call() -> Any:
        with torch.inference_mode():
            return run()

    return call


def own_ddim(case: Case, network: Any, x: Tensor, given: list[Tensor], dtype: torch.dtype) -> Call:
    learnt = Denoiser(network, Eps())
    sigmas = learnt.parameterization.grid(case.steps)
    conds = [Cond(tokens=one) if case.kind == "unet" else Cond(vector=one) for one in given]
    denoiser = learnt.around(Means(network), dtype)

    def run() -> Tensor:
        denoise = guided(denoiser, classifier_free(conds[1], conds[0], GUIDANCE))
        with constant_contexts():
            return ddim(denoise, x * sigmas[0].item(), sigmas, noise=torch.randn_like)

    return run


class Means(nn.Module):
    """Only the noise, of a network that predicts variances too."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        return self.network(x, *given)[:, : x.shape[1]]


def their_ddim(case: Case, network: Any, x: Tensor, given: list[Tensor], dtype: torch.dtype) -> Call:
    """DDIM as StableDiffusionPipeline and DiTPipeline use it."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    joined, call = torch.cat(given), forward(case.kind, "diffusers")

    def run() -> Tensor:
        scheduler.set_timesteps(case.steps, device=x.device)
        latents = x.to(dtype)
        for t in scheduler.timesteps:
            both = call(network, torch.cat([latents] * 2), t.expand(2 * len(x)), joined)
            null, cond = both[:, :4].chunk(2)
            latents = scheduler.step(null + GUIDANCE * (cond - null), t, latents).prev_sample
        return latents

    return run
