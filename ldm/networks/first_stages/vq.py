"""The vector-quantised autoencoder of latent diffusion, with the state-dict names of diffusers' VQModel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.autoencoder import ConvAutoencoder

MOST_DISTANCES = 2**24  # that are in memory at once


class Codebook(nn.Module):
    """Vectors (K, z), the codes, of which each latent takes the nearest (van den Oord et al. 2017, section 3.1)."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """The number (B, h, w) of the code that is nearest to each position of `latents` (B, z, h, w).

        Distances are taken as they are, in float32. Their expansion to |z|^2 - 2 z e + |e|^2 would be a matrix product,
        which loses digits, in the TF32 of GPUs most of all.
        """
        z, codes = latents.movedim(1, -1).float(), self.embedding.weight.float()
        rows = z.flatten(0, 2).split(max(1, MOST_DISTANCES // len(codes)))
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cat([torch.cdist(some, codes, compute_mode=exact).argmin(1) for some in rows]).view(z.shape[:3])

    def vectors(self, indices: Tensor) -> Tensor:
        """The codes (B, z, h, w) of `indices` (B, h, w)."""
        return F.embedding(indices, self.embedding.weight).movedim(-1, 1)


@register
class VQModel(ConvAutoencoder):
    """LDM's VQ-regularised autoencoder (van den Oord et al. 2017; Esser et al. 2021; Rombach et al. 2022, section 3.1).

    The decoder reads latents after each of their positions is replaced by the nearest of `codes` vectors, the codebook.
    As in LDM that is part of decoding: `encode` gives latents as they are before, and these are what stage two learns.
    `hidden` is the number of channels between the networks and the 1x1 convolutions, by default that of latents. The
    other options are those of `AutoencoderKL`.
    """

    REGULARIZER = "codebook"
    DECODING = (*ConvAutoencoder.DECODING, "quantize")

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 3,
        *,
        codes: int = 8192,
        hidden: int | None = None,
        channels: int | Sequence[int] = 64,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 1,
        stem: int = 1,
        attention: bool = False,
        shortcut: bool = False,
        groups: int | None = None,
    ):
        super().__init__(
            in_channels,
            latent_channels,
            moments=latent_channels,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            stem=stem,
            attention=attention,
            shortcut=shortcut,
            groups=groups,
            quant_convs=True,
            hidden=hidden,
        )
        if codes < 2:
            raise UserError(f"vae.codes={codes}: a codebook needs at least 2 codes; LDM's have 8192 and more.")
        self.quantize = Codebook(codes, latent_channels)

    def facts(self) -> dict[str, str]:
        """Those of every autoencoder, and the size of the codebook."""
        return super().facts() | {"codebook": f"{len(self.quantize.embedding.weight)} codes"}

    def quantised(self, latents: Tensor) -> Tensor:
        """The nearest codes (B, z, h, w). Their gradient goes to `latents` as it is: the straight-through estimator."""
        codes = self.quantize.vectors(self.indices(latents)).detach().to(latents.dtype)
        return codes + (latents - latents.detach())  # not finite where the latents aren't

    def indices(self, latents: Tensor) -> Tensor:
        """The number (B, h, w) of the code that each position of `latents` (B, z, h, w) becomes."""
        return self.quantize.indices(latents)

    def prior(self, noise: Tensor) -> Tensor:
        """Codes (B, z, h, w), each as likely as any other, chosen by the first channel of `noise` (B, z, h, w)."""
        codes = len(self.quantize.embedding.weight)
        level = torch.special.ndtr(noise[:, 0])  # uniform
        return self.quantize.vectors((level * codes).long().clamp(max=codes - 1))

    def freeze_encoder(self) -> None:
        """Stops gradients of the encoder's half and of the codebook."""
        self._freeze((*self.ENCODING, "quantize"))

    @property
    def starts_from_images(self) -> bool:
        """True: the codebook starts from latents."""
        return True

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Sets the shortcuts if there are any, and the codes to latents of random positions of `images` (B, C, H, W).

        Codes of uniform noise around 0, as in LDM, would all be alike to latents that lie further out, and most of them
        would never be used.
        """
        super().start_from(images)
        codes = self.quantize.embedding.weight
        rows = codes[:0]
        for some in images.split(4):
            latents = self.encode(some).mode().movedim(1, -1).flatten(0, 2)
            rows = torch.cat([rows, latents]).unique(dim=0)  # (N, z): flat areas give the same latent often
            if 4 * len(rows) >= 5 * len(codes):
                break
        order = torch.randperm(len(rows))
        more = torch.randint(len(rows), (max(0, len(codes) - len(rows)),))
        scatter = 0.01 * rows.std(0, correction=0) * torch.randn(len(more), rows.shape[1])
        codes.copy_(torch.cat([rows[order], rows[more] + scatter])[: len(codes)])
