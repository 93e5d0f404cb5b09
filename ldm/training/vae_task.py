"""Stage one: an autoencoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.randomness import normal
from ldm.diffusion.weighting import weighted_mean
from ldm.images import Preprocess
from ldm.networks import Autoencoder
from ldm.training.loss_mask import mean_counted, mean_of_places
from ldm.training.regularizers import regularizer_of
from ldm.training.task import Task
from ldm.training.vae_losses import VAELoss, shown


class VAETask(Task):
    """Minimises MSE + beta KL, both as means: over all pixel values, and over all latent elements.

    That is the negative evidence lower bound of Kingma and Welling 2014 (eq. 3) up to a factor, for a decoder of fixed
    variance; `equivalents` says which, and what other projects would call this beta. `terms`, the options of `VAELoss`,
    replace the MSE by other reconstruction terms, or add them to it.

    Over the first `beta_warmup_steps` beta rises linearly from 0 (Bowman et al. 2016, Sonderby et al. 2016): a large
    beta from the start makes the posterior collapse before the decoder has learnt to read anything.

    An autoencoder of another kind has another regularizer in place of the KL term: see `ldm.training.regularizers`;
    `codebook` are the options of a codebook's.

    With `decoder_only` the encoder's half is frozen, and the loss is that of the reconstruction from samples of the
    posterior alone: the decoder doesn't change the KL, nor do codes move.
    """

    def __init__(
        self,
        vae: Autoencoder,
        preprocess: Preprocess,
        beta: float,
        terms: Mapping[str, Any] | None = None,
        beta_warmup_steps: int = 0,
        decoder_only: bool = False,
        codebook: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        if decoder_only:
            vae.freeze_encoder()  # before the averages are made, which share what is frozen
        super().__init__(vae, **options)
        self.decoder_only = decoder_only
        self.preprocess = preprocess
        self.regularizer = regularizer_of(vae, beta, beta_warmup_steps, codebook)
        side = min(preprocess.height, preprocess.width) if preprocess else 0
        self.criterion = VAELoss(vae.in_channels, side, **(terms or {}))

    def on_fit_start(self) -> None:
        """Moves the networks of the loss to the device; they are no part of the task's state."""
        self.criterion.move_to(self.device)

    def losses(self, batch: dict[str, Any], network: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction + regularizer, with the other terms of the criterion where they are on; and what to log."""
        images, training, terms = batch["image"], network is self.trained, self.criterion
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            posterior = network.encode(images)
        noise = normal(self.seed, "posterior", batch["position"], tuple(posterior.mean.shape[1:]))
        # Validation decodes the mode, since the latents that stage two gives to the decoder lie near it.
        latents = posterior.sample(noise) if training else posterior.mode()
        places = self.places(batch)  # (B, 1, H, W) or None
        penalty, regular = self.regularizer(
            network,
            posterior,
            lambda values: mean_of_places(values, self.places(batch, values.shape[2:])),
            self.global_step if training else None,
        )
        if training and terms.equivariance:
            latents, images, places = self._transformed(latents, images, places, batch["start"])
        decoded = network.decode(latents)
        square = (decoded - images).square()
        errors = square.mean((1, 2, 3)) if places is None else weighted_mean(square, places)  # (B,)
        reconstruction, logged = terms.reconstruction(decoded, images, places)
        loss = reconstruction if self.decoder_only else reconstruction + penalty
        logged |= {"loss": loss, "mse": mean_counted(errors, places), **regular}
        logged["psnr"] = mean_counted(psnr(errors), places)
        if terms.critic is not None and training and torch.is_grad_enabled():
            added, figures = terms.against_critic(
                reconstruction,
                shown(decoded, images, places),
                images,
                last_layer=network.last_layer,
                step=self.global_step,
            )
            loss, logged = loss + added, logged | figures
        return loss, logged

    def _transformed(
        self, latents: Tensor, images: Tensor, places: Tensor | None, start: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents, images and the pixels' weights, all transformed alike by the criterion (`VAELoss.transformed`)."""
        joined, channels = images if places is None else torch.cat([images, places], 1), images.shape[1]
        latents, joined = self.criterion.transformed(latents, joined, self.trained.factor, seed=self.seed, start=start)
        return latents, joined[:, :channels], None if places is None else joined[:, channels:]

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Updates the averages, and then what the regularizer changes after an optimizer step."""
        before = self._steps_averaged
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._steps_averaged > before and not self.decoder_only:
            self.regularizer.after_step([self.trained, self.average, *self.power], self.seed, self.global_step)

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the validation samples, and the regularizer's figures of all of them."""
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.regularizer.validated().items()})

    def groups(self) -> list[dict[str, Any]]:
        """The critic is a group of the same optimizer, with the betas of adversarial training (LDM)."""
        groups = super().groups()
        if self.criterion.critic is not None:
            groups.append({"params": list(self.criterion.critic.parameters()), "betas": (0.5, 0.9)})
        return groups

    def clipped_separately(self, optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
        """The autoencoder and its critic, clipped separately so that neither's gradient makes the other's smaller."""
        critic = self.criterion.critic
        modules: list[nn.Module] = [self.trained] if critic is None else [self.trained, critic]
        return [list(module.parameters()) for module in modules]

    def assemble(self, trained: Any) -> nn.Module:
        """The autoencoder itself, with the preprocessing of its data."""
        trained.preprocess = self.preprocess
        return trained

    def weight_names(self) -> dict[str, str]:
        """The names of the average autoencoder's weights."""
        return {name: f"average.{name}" for name in self.average.state_dict()}


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], whose peak is 2, by their mean squared error."""
    return 10 * torch.log10(4 / mse.clamp(min=1e-12))
