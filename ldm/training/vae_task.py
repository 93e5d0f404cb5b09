"""Stage one: a variational autoencoder."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldm.images import Preprocess
from ldm.networks import AutoencoderKL
from ldm.randomness import normal
from ldm.training.task import Task


class VAETask(Task):
    """Minimises MSE + beta KL, both as means: over all pixel values, and over all latent elements.

    That is the negative evidence lower bound of Kingma and Welling 2014 (eq. 3) up to a factor, for a decoder of fixed
    variance; `equivalents` says which, and what other projects would call this beta.
    """

    def __init__(self, vae: AutoencoderKL, preprocess: Preprocess, beta: float, **options: Any):
        super().__init__(vae, **options)
        self.beta, self.preprocess = beta, preprocess

    def losses(self, batch: dict[str, Any], network: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        posterior = network.encode(images)
        noise = normal(self.seed, "posterior", batch["position"], tuple(posterior.mean.shape[1:]))
        # Validation is of the mode: what stage two's decoder will be fed is near it.
        latents = posterior.sample(noise) if network is self.trained else posterior.mode()
        mse = (network.decode(latents) - images).square().mean()
        kl = posterior.kl()  # (B, C, h, w)
        loss = mse + self.beta * kl.mean()
        logged = {"loss": loss, "mse": mse, "kl": kl.mean(), "psnr": psnr(mse)}
        if network is self.average:
            logged |= {f"kl_channel_{i}": value for i, value in enumerate(kl.mean((0, 2, 3)))}
        return loss, logged

    def assemble(self, trained: Any) -> nn.Module:
        trained.preprocess = self.preprocess
        return trained


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], whose peak is 2."""
    return 10 * torch.log10(4 / mse.clamp(min=1e-12))


def equivalents(beta: float, vae: AutoencoderKL) -> str:
    """This beta in other projects' conventions.

    With C f^2 pixel values to each of the z latent channels: LDM's kl_weight, which multiplies sums, is beta C f^2 / z;
    and the decoder whose log-likelihood the MSE is has the standard deviation sqrt(beta C f^2 / (2 z)).
    """
    ratio = vae.in_channels * vae.factor**2 / vae.latent_channels
    return (
        f"beta {beta:g} on the mean KL of a latent element, beside the mean squared error of a pixel value, equals "
        f"a kl_weight of {beta * ratio:.3g} where both are summed (LDM's convention), "
        f"and a decoder with standard deviation {math.sqrt(beta * ratio / 2):.3g} (evidence lower bound)"
    )
