"""The loss that training steps of autoencoders are timed with."""

import torch.nn.functional as F
from torch import Tensor

BETA = 1e-3


def loss_of(reconstruction: Tensor, mean: Tensor, logvar: Tensor, images: Tensor) -> Tensor:
    kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1)
    return F.mse_loss(reconstruction, images) + BETA * kl.mean()
