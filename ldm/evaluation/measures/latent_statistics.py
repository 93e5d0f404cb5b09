"""Statistics of an autoencoder's latents over many images, which show whether stage two can be trained on them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.networks import Gaussian

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2


@dataclass(frozen=True)
class LatentStatistics:
    """Of N images' posteriors. Channels are the latents' C; an element is one of the C x h x w numbers of an image."""

    images: int
    kl: Tensor | None  # (C,) nats of an element, mean; None where each posterior is a point
    active: Tensor  # (C,) share of the channel's elements whose posterior mean varies over the images
    mean: Tensor  # (C,)
    std: Tensor  # (C,) of sampled latents: the spread of the means and that of the posteriors
    posterior_std: Tensor  # (C,) root mean square
    low: Tensor  # (C,) least posterior mean
    high: Tensor  # (C,) greatest
    autocorrelation: Tensor  # (L,) of posterior means 1 .. L positions apart, over channels and both directions
    finite: bool

    @property
    def channels(self) -> int:
        """The number of latent channels."""
        return len(self.mean)

    @property
    def extreme(self) -> float:
        """The greatest absolute value of a posterior mean."""
        return float(torch.maximum(self.low.abs(), self.high.abs()).max())


def latent_statistics(posteriors: Iterable[Gaussian]) -> LatentStatistics:
    """Statistics of posteriors whose means and stds are (B, C, h, w) each.

    Active units (Burda et al. 2016): those with Var_x(E[z | x]) > 0.01.
    """
    found = list(posteriors)
    mean = torch.cat([p.mean.detach().double().cpu() for p in found])  # (N, C, h, w)
    std = torch.cat([p.std.detach().double().cpu() for p in found])
    over = (0, 2, 3)
    variance = mean.var(0, correction=0)  # (C, h, w), over images
    spread = mean.var(over, correction=0)  # (C,)
    square = std.square().mean(over)
    return LatentStatistics(
        images=len(mean),
        kl=Gaussian(mean, std).kl().mean(over) if std.count_nonzero() else None,
        active=(variance > ACTIVE_VARIANCE).double().mean((1, 2)),
        mean=mean.mean(over),
        std=(spread + square).sqrt(),
        posterior_std=square.sqrt(),
        low=mean.amin(over),
        high=mean.amax(over),
        autocorrelation=autocorrelation(mean),
        finite=bool(torch.isfinite(mean).all() and torch.isfinite(std).all()),
    )


def autocorrelation(z: Tensor, most: int = 8) -> Tensor:
    """The correlation of values (N, C, h, w) that lie 1, 2, ... positions apart, horizontally and vertically, (L,).

    Near 1 the latents are smooth. Near 0 positions are independent, as in noise, which is hard for stage two to model.
    """
    centred = z - z.mean((0, 2, 3), keepdim=True)
    power = centred.square().mean((0, 2, 3)).clamp(min=1e-12)  # (C,)
    lags = range(1, min(most, *z.shape[2:]) if min(z.shape[2:]) <= most else most + 1)
    found = []
    for lag in lags:
        across = (centred[..., lag:] * centred[..., :-lag]).mean((0, 2, 3))
        down = (centred[..., lag:, :] * centred[..., :-lag, :]).mean((0, 2, 3))
        found.append(((across + down) / 2 / power).mean())
    return torch.stack(found) if found else z.new_zeros(0)
