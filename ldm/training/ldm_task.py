"""Stage two: diffusion in the latent space."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.common.randomness import low_discrepancy, normal
from ldm.conditioning import Conditioner
from ldm.diffusion import Denoiser
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Autoencoder, Cond, Gaussian, Identity
from ldm.training.loss_mask import mean_counted, sample_weights
from ldm.training.task import Task
from ldm.training.trainer.means import Split, by_quarter

Module = TypeVar("Module", bound=nn.Module)


class DiffusionTask(Task):
    """Trains denoiser and conditioner on whitened latents. The first stage is frozen and decodes the samples shown.

    Each visit of an image samples its latent anew from the cached posterior. The loss is also logged by four bands of
    noise level that are equally likely in training, `loss_q1` (least noise) to `loss_q4`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        first_stage: Autoencoder | Identity,
        denoiser: Denoiser,
        conditioner: Conditioner,
        preprocess: Preprocess,
        whitening: tuple[Tensor, Tensor],
        sampling: dict[str, Any],
        **options: Any,
    ):
        super().__init__(nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner}), **options)
        self.first_stage = keep_weights(first_stage.eval().requires_grad_(False))
        self.preprocess, self.sampling = preprocess, sampling
        self.about: dict[str, Any] = {}  # further arguments of the assembled model
        self.register_buffer("latent_mean", whitening[0])
        self.register_buffer("latent_std", whitening[1])

    def on_fit_start(self) -> None:
        """Moves the frozen encoders of conditions, which are no part of the networks' state, to the device."""
        for network in (self.trained, self.average):
            for part in network["conditioner"].parts.values():
                part.move_to(self.device)

    def losses(self, batch: dict[str, Any], network: Any) -> tuple[Tensor, dict[str, Tensor | Split]]:
        """The weighted denoising error at one noise level per sample, and its mean in each quarter of the noise
        levels."""
        training, position = network is self.trained, batch["position"]
        seed = self.seed if training else self.seed + 1  # validation has noise of its own, the same every time
        cond = self.condition(batch, network, seed, training)
        x0 = self.latents(batch, seed)
        places = self.places(batch, x0.shape[2:])
        each = diffusion_loss(network["denoiser"], cond, x0, seed=seed, position=position, places=places)
        loss = mean_counted(each, places)
        weights = None if places is None else sample_weights(places)
        return loss, {"loss": loss, "loss_q": by_quarter(each, noise_quantiles(seed, position), weights)}

    def condition(self, batch: dict[str, Any], network: Any, seed: int, training: bool) -> Cond:
        """The batch's conditions, some of them dropped in training.

        For a condition made of pixels and latents, such as inpainting's masked image, the first stage encodes here.
        """
        conditioner = network["conditioner"]
        if self.loss_mask and self.loss_mask.column not in conditioner.needs:
            # inpainting takes a mask in the batch for its own, and else draws one
            batch = {key: value for key, value in batch.items() if key != self.loss_mask.column}
        batch = conditioner.prepare(batch, self.encode, seed)
        if not training:
            return conditioner(batch)
        coins = batch["drop"] if "drop" in batch else conditioner.coins(seed, batch["position"])
        return conditioner(batch, coins)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to whitened latents, the posterior's mean."""
        return self.whiten(self.posterior(images).mode())

    def posterior(self, images: Tensor) -> Gaussian:
        """The first stage's posterior, in float32 whatever the trainer's precision."""
        with torch.autocast(images.device.type, enabled=False):
            return self.first_stage.encode(images.float())

    def whiten(self, latents: Tensor) -> Tensor:
        """(latents - mean) / std per channel, of latents (B, z, h, w)."""
        return (latents - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def latents(self, batch: dict[str, Any], seed: int) -> Tensor:
        """Whitened latents (B, C, h, w), sampled from each image's posterior."""
        if "latent_mean" in batch:
            posterior = Gaussian(batch["latent_mean"], batch["latent_std"])
        else:  # latents=online
            posterior = self.posterior(batch["image"])
        noise = normal(seed, "posterior", batch["position"], tuple(posterior.mean.shape[1:]))
        return self.whiten(posterior.sample(noise))

    def assemble(self, trained: Any) -> LatentDiffusion:
        """The LatentDiffusion around the denoiser and the conditioner in `trained`."""
        model = LatentDiffusion(
            self.first_stage,
            trained["denoiser"],
            trained["conditioner"],
            preprocess=self.preprocess,
            sampling=self.sampling,
            **self.about,
        )
        model.latent_mean, model.latent_std = self.latent_mean, self.latent_std
        return model.eval()

    def weight_names(self) -> dict[str, str]:
        """The names of all weights of the model."""
        return {name: self.name_of(name) for name in self.model().state_dict()}

    def name_of(self, name: str) -> str:
        """The name in this task's state of a weight that the assembled average model calls `name`."""
        part = name.partition(".")[0]
        return f"average.{name}" if part in self.average else name


def keep_weights(first_stage: Module) -> Module:
    """Makes the first stage keep its weights when a checkpoint is loaded, and returns it.

    The decoder that a resumed run is given may be better than the one that the run began with. Each module keeps its
    own weights, because some strategies load module by module.
    """
    for module in first_stage.modules():
        module.register_load_state_dict_pre_hook(_put_own_weights)
    return first_stage


def _put_own_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state |= {prefix + name: weight.detach() for name, weight in module.named_parameters(recurse=False)}


def diffusion_loss(
    denoiser: Denoiser, cond: Cond, x0: Tensor, *, seed: int, position: Tensor, places: Tensor | None = None
) -> Tensor:
    """The loss of each sample, (B,), with a noise and a noise level that are functions of (seed, position). `places`
    (B, 1, h, w) are the weights of the latents' positions in the loss."""
    noise = normal(seed, "noise", position, tuple(x0.shape[1:]))
    if denoiser.offset_noise:
        noise = noise + denoiser.offset_noise * normal(seed, "offset noise", position, (x0.shape[1], 1, 1))
    sigma = denoiser.noise.sigma(noise_quantiles(seed, position), denoiser.parameterization)
    return denoiser.loss(x0, noise, sigma, cond, places=places)


def noise_quantiles(seed: int, position: Tensor) -> Tensor:
    """The quantile (B,) of each sample's noise level in the distribution of training: 0 is the least noise, 1 the
    most."""
    return low_discrepancy(seed, "sigma", position)
