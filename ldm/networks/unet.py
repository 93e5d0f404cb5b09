"""The cross-attention U-Net of latent diffusion (Rombach et al. 2022), with the state-dict names of diffusers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.cond import Cond
from ldm.networks.layers import (
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    format_on,
    groups_of,
    silu,
    timestep_embedding,
    whole_patches,
    zero_,
)

PerLevel = int | Sequence[int]
Sampler = tuple[str, nn.Module] | None


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer where the level attends."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[SpatialTransformer], sampler: Sampler):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers = nn.ModuleList([sampler[1]]) if sampler and sampler[0] == "down" else None
        self.upsamplers = nn.ModuleList([sampler[1]]) if sampler and sampler[0] == "up" else None

    def block(self, i: int, x: Tensor, embedding: Tensor, cond: Cond) -> Tensor:
        x = self.resnets[i](x, embedding)
        return x if self.attentions is None else self.attentions[i](x, cond.tokens, cond.mask)


class Middle(nn.Module):
    def __init__(self, resnets: list[ResnetBlock], attention: SpatialTransformer):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, embedding: Tensor, cond: Cond) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding), cond.tokens, cond.mask)
        return self.resnets[1](x, embedding)


class Encoder(nn.Module):
    """What a U-Net and its ControlNets compute alike: the embedding, the way down and the middle."""

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
        """Noise level and vector condition in one embedding, already through SiLU: (B, E)."""
        features = timestep_embedding(c_noise, self.widths[0]).to(self.conv_in.weight.dtype)
        embedding = self.time_embedding(features, cond.guidance)  # (B, E)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(cond.vector)
        if self.add_embedding is not None:
            if cond.vector is None:
                raise UserError(
                    "this network reads a vector of conditions, and there is none: a file of Stable Diffusion XL "
                    "is loaded with text_encoder=FOLDER."
                )
            embedding = embedding + self.add_embedding(cond.vector)
        return F.silu(embedding)

    def encode(
        self, x: Tensor, embedding: Tensor, cond: Cond, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The way down and the middle: its output, and the skips in the order they arose.

        `hint`, a ControlNet's, is added to the first features.
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
    """Residual blocks at falling, then rising resolution, with skips between equals and attention where asked.

    `channels` is the base width, times `multipliers` a level; or a width a level. `blocks` residual blocks a level (one
    more on the way up). `attention` says which levels hold transformers of `depth` blocks and `heads` heads each (the
    middle always does). Every width must be a multiple of `groups` (by default 32 or what divides the base
    width). The vector of conditions is added to the time embedding through `vector_layers` linear layers: 1, or 2 with
    SiLU between them (Podell et al. 2023, SDXL). A `patch` of p moves p x p places into channels before the first
    convolution and back after the last one.
    With a `guidance_dim` the guidance scale is a condition, embedded in so many features (`finetune=distill`).
    Any latent size works, odd ones too: what is halved with a remainder is brought back to its skip's size, and what
    doesn't fill a patch is filled with zeros and cut off again.
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
        levels = len(widths)
        attends = _per_level(attention, levels, "attention")
        depths, head_counts = _per_level(depth, levels, "depth"), _per_level(heads, levels, "heads")
        groups = groups or groups_of(widths[0])
        _check_widths(widths, groups, head_counts)
        embed_dim = 4 * widths[0]
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.widths, self.concat_channels = widths, concat_channels
        self.context_dim, self.vector_dim, self.guidance_dim = context_dim, vector_dim, guidance_dim
        _check_vector(vector_layers, vector_bias)
        dims = vector_dim if vector_layers == 1 else None, vector_dim if vector_layers == 2 else None

        def resnet(a: int, b: int) -> ResnetBlock:
            return ResnetBlock(a, b, embed_dim, groups=groups, eps=1e-5, dropout=dropout, scale_shift=scale_shift)

        def transformer(i: int) -> SpatialTransformer:
            return SpatialTransformer(
                widths[i],
                head_counts[i],
                context_dim,
                depth=depths[i],
                groups=groups,
                linear_projection=linear_projection,
            )

        def level(i: int, resnets: list[ResnetBlock], sampler: Sampler) -> Level:
            return Level(resnets, [transformer(i) for _ in resnets if attends[i]], sampler)

        self.patch = patch
        self.conv_in = nn.Conv2d((in_channels + concat_channels) * patch**2, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], embed_dim, guidance_dim)
        self.class_embedding = nn.Linear(dims[0], embed_dim, vector_bias) if dims[0] else None
        self.add_embedding = TimestepEmbedding(dims[1], embed_dim) if dims[1] else None
        self.down_blocks, skips = _way_down(widths, blocks, resnet, level)
        self.mid_block = Middle([resnet(widths[-1], widths[-1]) for _ in range(2)], transformer(levels - 1))
        self.up_blocks: Any = _way_up(widths, blocks, skips, resnet, level)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], 1e-5)
        self.conv_out = zero_(nn.Conv2d(widths[0], self.out_channels * patch**2, 3, padding=1))

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond | None = None, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """`x` (B, C, h, w), `c_noise` (B,) the noise level in the parameterization's own measure -> (B, out, h, w).

        `residuals`, a ControlNet's, are added to the skips and, the last, to the middle.
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


MakeResnet = Callable[[int, int], ResnetBlock]
MakeLevel = Callable[[int, list[ResnetBlock], Sampler], Level]


def _way_down(widths: list[int], blocks: int, resnet: MakeResnet, level: MakeLevel) -> tuple[nn.ModuleList, list[int]]:
    """The levels from fine to coarse, and the widths of the skips that they leave, in the order they arise."""
    levels, skips = nn.ModuleList(), [widths[0]]
    for i, width in enumerate(widths):
        before = widths[max(i - 1, 0)]
        resnets = [resnet(before if j == 0 else width, width) for j in range(blocks)]
        last = i == len(widths) - 1
        levels.append(level(i, resnets, None if last else ("down", Downsample(width))))
        skips += [width] * (blocks + (not last))
    return levels, skips


def _way_up(widths: list[int], blocks: int, skips: list[int], resnet: MakeResnet, level: MakeLevel) -> nn.ModuleList:
    """The levels from coarse to fine; every block reads one skip beside what comes from below."""
    levels, width, left = nn.ModuleList(), widths[-1], list(skips)
    for i in reversed(range(len(widths))):
        resnets = []
        for _ in range(blocks + 1):
            resnets.append(resnet(width + left.pop(), widths[i]))
            width = widths[i]
        levels.append(level(i, resnets, None if i == 0 else ("up", Upsample(width))))
    return levels


def _per_level(value, levels: int, name: str) -> list:
    values = [value] * levels if isinstance(value, (int, bool)) else list(value)
    if len(values) != levels:
        raise UserError(f"network.{name} has {len(values)} values for {levels} levels; give one, or one a level.")
    return values


def _check_vector(layers: int, bias: bool) -> None:
    if layers not in (1, 2) or (layers == 2 and not bias):
        raise UserError(f"network: vector_layers={layers}, vector_bias={bias}: take 1 layer, or 2, which have biases.")


def _check_widths(widths: list[int], groups: int, heads: list[int]) -> None:
    for width, head_count in zip(widths, heads, strict=True):
        if width % groups or width % head_count:
            raise UserError(
                f"network: a width of {width} channels can't be split into {groups} groups and {head_count} heads; "
                "choose network.channels and network.heads that divide."
            )
