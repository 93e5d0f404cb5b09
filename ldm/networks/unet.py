"""The cross-attention U-Net of latent diffusion (Rombach et al. 2022), with the state-dict names of diffusers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.cond import Cond
from ldm.networks.layers import (
    TimestepEmbedding,
    format_on,
    groups_of,
    silu,
    timestep_embedding,
    whole_patches,
    zero_,
)
from ldm.networks.levels import LevelBuilder, Middle

PerLevel = int | Sequence[int]


class Encoder(nn.Module):
    """What a U-Net and its ControlNets have in common: the embedding, the way down and the middle."""

    in_channels: int
    concat_channels: int
    patch: int
    widths: list[int]
    conv_in: nn.Conv2d
    time_embedding: TimestepEmbedding
    class_embedding: nn.Linear | None
    add_embedding: TimestepEmbedding | None
    down_blocks: Any
    mid_block: Middle

    def embed(self, c_noise: Tensor, cond: Cond) -> Tensor:
        """The noise level `c_noise` (B,) and the vector condition in one embedding (B, E), with SiLU applied."""
        features = timestep_embedding(c_noise, self.widths[0]).to(self.conv_in.weight.dtype)
        embedding = self.time_embedding(features, cond.guidance)  # (B, E)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(cond.vector)
        if self.add_embedding is not None:
            if cond.vector is None:
                raise UserError(
                    "this network needs a vector of conditions, but none is given: load a file of Stable Diffusion XL "
                    "with text_encoder=FOLDER."
                )
            embedding = embedding + self.add_embedding(cond.vector)
        return F.silu(embedding)

    def encode(
        self, x: Tensor, embedding: Tensor, cond: Cond, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The way down and the middle: `x` (B, C, h, w) -> the middle's output, and the skips in the order of
        computation.

        `hint` (B, widths[0], h, w), the encoded control image of a ControlNet, is added to the first features.
        """
        if self.concat_channels:
            assert cond.concat is not None, "this network was built with concat_channels"
            x = torch.cat([x, cond.concat], 1)
        if self.patch > 1:
            x = F.pixel_unshuffle(whole_patches(x, self.patch), self.patch)  # (B, C p^2, h/p, w/p)
        h = self.conv_in(x.contiguous(memory_format=format_on(x.device)))
        h = h if hint is None else h + hint
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level.block(i, h, embedding, cond)
                skips.append(h)
            if level.downsamplers is not None:
                h = level.downsamplers[0](h)
                skips.append(h)
        return self.mid_block(h, embedding, cond), skips


@register
class UNet(Encoder):
    """Residual blocks at falling and then rising resolution, with skips between equal resolutions, and transformers at
    the chosen levels (Ronneberger et al. 2015; Rombach et al. 2022, section 3.2).

    `channels` is the base width, multiplied by `multipliers` for each level, or a list with the width of each level.
    Every level has `blocks` residual blocks, one more on the way up. `attention` says which levels have transformers,
    each of `depth` blocks and `heads` heads; the middle always has one. Every width must be a multiple of `groups`, by
    default the greatest common divisor of 32 and the base width.

    The vector of conditions is added to the time embedding through `vector_layers` linear layers: 1, or 2 with SiLU
    between them (Podell et al. 2023, SDXL). With `guidance_dim` the guidance scale is a condition, embedded in that
    many features (`finetune=distill`). A `patch` of p moves p x p positions into channels before the first convolution,
    and back after the last one.

    Latents of any size work. On the way up, features are enlarged to the size of their skip, which matters for odd
    sizes; a latent whose sides aren't multiples of the patch is padded with zeros, and the output is cropped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        channels: PerLevel = 128,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 1,
        attention: bool | Sequence[bool] = True,
        depth: PerLevel = 1,
        heads: PerLevel = 4,
        context_dim: int | None = None,
        vector_dim: int | None = None,
        vector_bias: bool = True,
        vector_layers: int = 1,
        concat_channels: int = 0,
        guidance_dim: int | None = None,
        patch: int = 1,
        scale_shift: bool = True,
        linear_projection: bool = True,
        groups: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        widths = [round(channels * m) for m in multipliers] if isinstance(channels, int) else list(channels)
        levels = LevelBuilder(
            widths=widths,
            blocks=blocks,
            attention=_per_level(attention, len(widths), "attention"),
            depths=_per_level(depth, len(widths), "depth"),
            heads=_per_level(heads, len(widths), "heads"),
            context_dim=context_dim,
            groups=groups or groups_of(widths[0]),
            scale_shift=scale_shift,
            linear_projection=linear_projection,
            dropout=dropout,
        )
        _check_vector(vector_layers, vector_bias)
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.widths, self.concat_channels, self.patch = widths, concat_channels, patch
        self.context_dim, self.vector_dim, self.guidance_dim = context_dim, vector_dim, guidance_dim
        self.conv_in = nn.Conv2d((in_channels + concat_channels) * patch**2, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], levels.embed_dim, guidance_dim)
        self._build_vector_embedding(levels.embed_dim, vector_layers, vector_bias)
        self.down_blocks = nn.ModuleList([levels.down(i) for i in range(len(widths))])
        self.mid_block = levels.middle()
        self.up_blocks: Any = levels.way_up(skip_widths(self))
        self.conv_norm_out = nn.GroupNorm(levels.groups, widths[0], 1e-5)
        self.conv_out = zero_(nn.Conv2d(widths[0], self.out_channels * patch**2, 3, padding=1))

    def _build_vector_embedding(self, embed_dim: int, layers: int, bias: bool) -> None:
        """`class_embedding` for one layer, `add_embedding` for two; the names are those of diffusers."""
        self.class_embedding, self.add_embedding = None, None
        if self.vector_dim and layers == 1:
            self.class_embedding = nn.Linear(self.vector_dim, embed_dim, bias)
        elif self.vector_dim:
            self.add_embedding = TimestepEmbedding(self.vector_dim, embed_dim)

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond | None = None, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """`x` (B, C, h, w) and the noise level `c_noise` (B,), in the parameterization's own scale -> (B, out, h, w).

        `residuals` are what a ControlNet adds: one for each skip, and the last one for the middle.
        """
        cond = cond or Cond()
        embedding = self.embed(c_noise, cond)
        h, skips = self.encode(x, embedding, cond)
        if residuals is not None:
            skips = [s + r for s, r in zip(skips, residuals[:-1], strict=True)]
            h = h + residuals[-1]
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = level.block(i, torch.cat([h, skips.pop()], 1), embedding, cond)
            if level.upsamplers is not None:
                h = level.upsamplers[0](h, skips[-1].shape[2:])
        out = self.conv_out(silu(self.conv_norm_out(h)))
        return F.pixel_shuffle(out, self.patch)[..., : x.shape[2], : x.shape[3]] if self.patch > 1 else out


def skip_widths(network: Encoder) -> list[int]:
    """The channels of every skip in the order of computation: of the first convolution, of each residual block, and of
    each step to a lower resolution."""
    widths = [network.widths[0]]
    for level, width in zip(network.down_blocks, network.widths, strict=True):
        widths += [width] * len(level.resnets)
        if level.downsamplers is not None:
            widths.append(width)
    return widths


def _per_level(value: Any, levels: int, name: str) -> list:
    values = [value] * levels if isinstance(value, (int, bool)) else list(value)
    if len(values) != levels:
        raise UserError(
            f"network.{name} has {len(values)} values for {levels} levels; give one for all, or one for each level."
        )
    return values


def _check_vector(layers: int, bias: bool) -> None:
    if layers not in (1, 2) or (layers == 2 and not bias):
        raise UserError(
            f"network: vector_layers={layers}, vector_bias={bias}: choose 1 layer, or 2 layers with vector_bias=true."
        )
