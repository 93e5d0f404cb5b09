"""The posterior of a variational autoencoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal normal distribution over latents: the posterior q(z | x), with `mean` and `std` (B, C, h, w)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Gaussian":
        """From mean and log-variance stacked over channels, (B, 2C, h, w)."""
        mean, logvar = moments.float().chunk(2, 1)
        return cls(mean, (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp())

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise, (B, C, h, w): the reparameterization trick (Kingma and Welling 2014, section 2.4)."""
        return torch.addcmul(self.mean, self.std, torch.randn_like(self.mean) if noise is None else noise)

    def mode(self) -> Tensor:
        """The most likely latent (B, C, h, w), which is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each latent element in nats: (mean^2 + var - ln var - 1) / 2, (B, C, h, w)."""
        variance = self.std.square()
        return 0.5 * (self.mean.square() + variance - variance.log() - 1)
