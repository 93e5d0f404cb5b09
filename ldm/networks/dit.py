"""A Transformer instead of a U-Net: DiT (Peebles and Xie 2023) with cross-attention to a context (Chen et al. 2023)."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.attention import Attention, FeedForward
from ldm.networks.cond import Cond
from ldm.networks.layers import TimestepEmbedding, timestep_embedding, whole_patches, zero_


def positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal features of every position in a grid, (height * width, dim), row by row.

    The first half encodes the column, the second the row, each by sines and then cosines of the coordinate at
    frequencies from 1 down to 1/10,000 (Vaswani et al. 2017, in two dimensions as in MAE and DiT).
    """

    def features(coordinate: Tensor) -> Tensor:
        """`coordinate` (n,) -> (n, dim / 2)."""
        return timestep_embedding(coordinate, dim // 2).roll(dim // 4, 1)  # sines first

    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    across = features(columns).expand(height, width, -1)
    down = features(rows)[:, None].expand(height, width, -1)
    return torch.cat([across, down], 2).flatten(0, 1)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention if there is a context, and feed-forward, each added to its input.

    adaLN-zero (Peebles and Xie 2023, section 3.2): the embedding determines shift, scale and gate of self-attention and
    feed-forward, all of which start at 0. Cross-attention isn't modulated, as in PixArt-alpha, and its last layer
    starts at 0. So the block starts as the identity.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None, mlp: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.attn1 = Attention(dim, heads, bias=True)
        self.attn2 = None
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(dim, 1e-6)
            self.attn2 = Attention(dim, heads, context_dim, bias=True)
            zero_(self.attn2.to_out[0])
        self.norm3 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.ff = FeedForward(dim, mlp)
        self.dropout = nn.Dropout(dropout)
        self.modulation = zero_(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """`x` (B, N, D), `embedding` (B, D) after SiLU, `context` (B, L, E), `mask` (B, L) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, 2)  # (B, 1, D)
        x = x + gate1 * self.dropout(self.attn1(modulated(self.norm1(x), shift1, scale1)))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return x + gate2 * self.dropout(self.ff(modulated(self.norm3(x), shift2, scale2)))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """shift + x (1 + scale) for `x` (B, N, D), with `shift` and `scale` (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class Patched(nn.Module):
    """What a DiT and its ControlNets have in common: the embedding, and patches as tokens with their positions."""

    concat_channels: int
    channels: int
    patch: int
    conv_in: nn.Conv2d
    time_embedding: TimestepEmbedding
    class_embedding: nn.Linear | None

    def tokens(self, x: Tensor, cond: Cond) -> tuple[Tensor, tuple[int, int]]:
        """The patches of `x` (B, C, h, w) and of the condition's channels as tokens (B, N, D), and the numbers of
        their rows and columns, h / p and w / p rounded up."""
        if self.concat_channels:
            assert cond.concat is not None, "this network was built with concat_channels"
            x = torch.cat([x, cond.concat], 1)
        h = self.conv_in(whole_patches(x, self.patch))  # (B, D, rows, columns)
        rows, columns = h.shape[2:]
        places = positions(rows, columns, self.channels, x.device).to(h.dtype)  # (N, D)
        return h.flatten(2).transpose(1, 2) + places, (rows, columns)

    def embed(self, c_noise: Tensor, cond: Cond) -> Tensor:
        """The noise level `c_noise` (B,) and the vector condition in one embedding (B, D), with SiLU applied."""
        features = timestep_embedding(c_noise, self.channels).to(self.conv_in.weight.dtype)
        embedding = self.time_embedding(features, cond.guidance)  # (B, D)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(cond.vector)
        return F.silu(embedding)


@register
class DiT(Patched):
    """`depth` Transformer blocks of width `channels` over patches of `patch` x `patch` positions of the latent.

    The interface is that of `UNet`, and latents of any size work: position features are sinusoidal, and a latent whose
    sides aren't multiples of the patch is padded with zeros, and the output is cropped. With `guidance_dim` the
    guidance scale is a condition, embedded in that many features. For N patches the cost of a step grows as
    N channels^2 + N^2 channels, so large latents need a larger `patch`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        channels: int = 192,
        depth: int = 8,
        heads: int = 4,
        patch: int = 1,
        mlp: int = 4,
        context_dim: int | None = None,
        vector_dim: int | None = None,
        concat_channels: int = 0,
        guidance_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = {"channels": channels, "depth": depth, "heads": heads, "patch": patch, "mlp": mlp}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f"network.{name}={value}: a DiT takes one whole number of at least 1; only a UNet has levels."
                )
        if channels % 4 or channels % heads:
            raise UserError(f"network: channels={channels} has to be divisible by 4 and by heads={heads}.")
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.context_dim, self.vector_dim, self.concat_channels = context_dim, vector_dim, concat_channels
        self.guidance_dim = guidance_dim
        self.channels, self.patch = channels, patch
        self.conv_in = nn.Conv2d(in_channels + concat_channels, channels, patch, stride=patch)
        self.time_embedding = TimestepEmbedding(channels, channels, guidance_dim)
        self.class_embedding = nn.Linear(vector_dim, channels) if vector_dim else None
        self.blocks = nn.ModuleList(
            [DiTBlock(channels, heads, context_dim, mlp=mlp, dropout=dropout) for _ in range(depth)]
        )
        self.norm_out = nn.LayerNorm(channels, 1e-6, elementwise_affine=False)
        self.modulation_out = zero_(nn.Linear(channels, 2 * channels))
        self.linear_out = zero_(nn.Linear(channels, self.out_channels * patch**2))

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond | None = None, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """`x` (B, C, h, w) and the noise level `c_noise` (B,), in the parameterization's own scale -> (B, out, h, w).

        `residuals`, from ControlNets, are added to the outputs of the first blocks.
        """
        cond = cond or Cond()
        height, width = x.shape[2:]
        h, (rows, columns) = self.tokens(x, cond)
        embedding = self.embed(c_noise, cond)
        for block, residual in zip_longest(self.blocks, residuals or ()):
            h = block(h, embedding, cond.tokens, cond.mask)
            h = h if residual is None else h + residual
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, 2)  # (B, 1, D)
        h = self.linear_out(modulated(self.norm_out(h), shift, scale))  # (B, N, out p^2)
        h = h.transpose(1, 2).unflatten(2, (rows, columns))  # (B, out p^2, h', w')
        return F.pixel_shuffle(h, self.patch)[..., :height, :width]
