"""The levels of a U-Net, and how they are built from its settings."""

from dataclasses import dataclass

from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.networks.attention import SpatialTransformer
from ldm.networks.cond import Cond
from ldm.networks.layers import Downsample, ResnetBlock, Upsample


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer if the level has attention, and the step
    to the next resolution, if there is one. The network runs the blocks one by one, because each writes or reads a
    skip."""

    def __init__(
        self,
        resnets: list[ResnetBlock],
        attentions: list[SpatialTransformer],
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers = nn.ModuleList([downsample]) if downsample is not None else None
        self.upsamplers = nn.ModuleList([upsample]) if upsample is not None else None

    def block(self, i: int, x: Tensor, embedding: Tensor, cond: Cond) -> Tensor:
        """Residual block `i` and its transformer: `x` (B, C, h, w), `embedding` (B, E) -> (B, width, h, w)."""
        x = self.resnets[i](x, embedding)
        return x if self.attentions is None else self.attentions[i](x, cond.tokens, cond.mask)


class Middle(nn.Module):
    """The lowest resolution between the way down and the way up: a residual block, a transformer, a residual block."""

    def __init__(self, resnets: list[ResnetBlock], attention: SpatialTransformer):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, embedding: Tensor, cond: Cond) -> Tensor:
        """`x` (B, C, h, w), `embedding` (B, E) -> (B, C, h, w)."""
        x = self.attentions[0](self.resnets[0](x, embedding), cond.tokens, cond.mask)
        return self.resnets[1](x, embedding)


@dataclass(frozen=True)
class LevelBuilder:
    """The settings of a U-Net's levels, and how one level is built from them. In the lists each level has its entry,
    from the finest to the coarsest.

    The order in which modules are created decides which random numbers initialise them: residual blocks first, then the
    change of resolution, then transformers.
    """

    widths: list[int]
    blocks: int
    attention: list[bool]
    depths: list[int]
    heads: list[int]
    context_dim: int | None
    groups: int
    scale_shift: bool
    linear_projection: bool
    dropout: float

    def __post_init__(self) -> None:
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % self.groups or width % heads:
                raise UserError(
                    f"network: a width of {width} channels can't be split into {self.groups} groups and {heads} heads; "
                    "choose network.channels and network.heads that divide."
                )

    @property
    def embed_dim(self) -> int:
        """The features of the time embedding."""
        return 4 * self.widths[0]

    def down(self, i: int) -> Level:
        """Level `i` on the way down. All but the coarsest end by halving the resolution."""
        width, before = self.widths[i], self.widths[max(i - 1, 0)]
        resnets = [self._resnet(before if j == 0 else width, width) for j in range(self.blocks)]
        downsample = Downsample(width) if i < len(self.widths) - 1 else None
        return Level(resnets, self._transformers(i, self.blocks), downsample=downsample)

    def middle(self) -> Middle:
        """Two residual blocks with a transformer between them, at the coarsest level."""
        width = self.widths[-1]
        resnets = [self._resnet(width, width) for _ in range(2)]
        return Middle(resnets, self._transformer(len(self.widths) - 1))

    def way_up(self, skips: list[int]) -> nn.ModuleList:
        """The levels on the way up, from the coarsest to the finest. Each block reads the last of the remaining skips;
        `skips` are their channels in the order in which the way down writes them."""
        levels, left = nn.ModuleList(), list(skips)
        for i in reversed(range(len(self.widths))):
            levels.append(self._up(i, [left.pop() for _ in range(self.blocks + 1)]))
        return levels

    def _up(self, i: int, skips: list[int]) -> Level:
        """Level `i` on the way up. Its blocks read skips, with `skips` channels each, in addition to the features from
        below. All levels but the finest end by doubling the resolution."""
        width, below = self.widths[i], self.widths[min(i + 1, len(self.widths) - 1)]
        resnets = []
        for j, skip in enumerate(skips):
            features = below if j == 0 else width
            resnets.append(self._resnet(features + skip, width))
        upsample = Upsample(width) if i > 0 else None
        return Level(resnets, self._transformers(i, len(resnets)), upsample=upsample)

    def _resnet(self, channels: int, out_channels: int) -> ResnetBlock:
        return ResnetBlock(
            channels,
            out_channels,
            self.embed_dim,
            groups=self.groups,
            eps=1e-5,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
        )

    def _transformers(self, i: int, count: int) -> list[SpatialTransformer]:
        return [self._transformer(i) for _ in range(count)] if self.attention[i] else []

    def _transformer(self, i: int) -> SpatialTransformer:
        return SpatialTransformer(
            self.widths[i],
            self.heads[i],
            self.context_dim,
            depth=self.depths[i],
            groups=self.groups,
            linear_projection=self.linear_projection,
        )
