"""An autoencoder's halves computed strip by strip, with the result of the whole: large images in less memory.

Convolutions read a few rows beyond a strip, and GroupNorm takes its statistics of the whole map in a pass before. Of
each residual block the output alone is kept, in the place of the input where the shape is the same; what is between is
computed once for the statistics of its second norm and again for the output.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.networks.layers import silu

PIECE_BYTES = 2**25  # what is larger, glibc gives back to the system as soon as it is freed; smaller ones leave holes
LEAST_ROWS = 4  # of a strip: with fewer, most of the work would be the 2 rows beyond it, and they have to lie in one
Function = Callable[[Tensor], Tensor]


class Map(Protocol):
    """A feature map (B, C, height, width) that is read by rows."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b - 1, (B, C, b - a, width)."""
        ...

    def forget(self, a: int) -> None:
        """Rows before a won't be read again."""
        ...


class Kept:
    """A map in memory, in pieces one below the other that come as rows are written and go as they are forgotten."""

    def __init__(self, height: int, width: int, pieces: list[Tensor] | None = None):
        self.height, self.width, self.pieces = height, width, pieces or []
        self.first = 0  # the row at which the first piece begins

    @classmethod
    def of(cls, x: Tensor) -> "Kept":
        return cls(x.shape[2], x.shape[3], [x])

    def rows(self, a: int, b: int) -> Tensor:
        found = [piece[:, :, max(a - at, 0) : b - at] for piece, at in self._over(a, b)]
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def write(self, a: int, rows: Tensor) -> None:
        """Puts rows from a on, those that come next or others in the place of what is there."""
        b = a + rows.shape[2]
        while (end := self.first + sum(piece.shape[2] for piece in self.pieces)) < b:
            self.pieces.append(self._piece(rows, self.height - end))
        for piece, at in self._over(a, b):
            low, high = max(a, at), min(b, at + piece.shape[2])
            piece[:, :, low - at : high - at] = rows[:, :, low - a : high - a]

    def forget(self, a: int) -> None:
        while self.pieces and self.first + self.pieces[0].shape[2] <= a:
            self.first += self.pieces.pop(0).shape[2]

    def _over(self, a: int, b: int) -> list[tuple[Tensor, int]]:
        """The pieces with rows a to b - 1, and at which row each begins."""
        starts = itertools.accumulate((piece.shape[2] for piece in self.pieces), initial=self.first)
        return [(p, at) for p, at in zip(self.pieces, starts, strict=False) if at < b and a < at + p.shape[2]]

    def _piece(self, like: Tensor, most: int) -> Tensor:
        batch, channels, _, width = like.shape
        count = min(most, PIECE_BYTES // (batch * channels * width * like.element_size()) + 1)
        size, channels_last = (batch, channels, count, width), torch.channels_last
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=channels_last)


@dataclass(frozen=True)
class Local:
    """What `run` makes of a map, computed when it is read: row i of it depends on rows from i down / up - before to
    i down / up + after of `source`.

    `run` pads with zeros as in the whole network; where a strip's edge isn't the map's, the rows that saw them are cut
    off.
    """

    source: Map
    run: Function
    before: int = 0
    after: int = 0
    up: int = 1
    down: int = 1

    @property
    def height(self) -> int:
        return self.source.height * self.up // self.down

    @property
    def width(self) -> int:
        return self.source.width * self.up // self.down

    def rows(self, a: int, b: int) -> Tensor:
        low = self._lowest(a)
        high = min(self.source.height, -(-b * self.down // self.up) + self.after)
        first = low * self.up // self.down
        return self.run(self.source.rows(low, high))[:, :, a - first : b - first]

    def forget(self, a: int) -> None:
        self.source.forget(self._lowest(a))

    def _lowest(self, a: int) -> int:
        return max(0, a * self.down // self.up - self.before)


def decoder(network: Any, area: int) -> Function:
    """The function of a Decoder, in strips of about `area` places. What is at the latents' size is computed whole,
    attention too."""

    def run(z: Tensor) -> Tensor:
        x: Map = Kept.of(network.mid_block(network.conv_in(z)))
        for stage in network.up_blocks:
            x = _stage(stage, x, area)
        norm = _normed(network.conv_norm_out, x, area)
        out = _kept(Local(x, lambda s: network.conv_out(silu(norm(s))), 1, 1), area)
        return out.rows(0, out.height)

    return run


def encoder(network: Any, area: int) -> Function:
    """The function of an Encoder, likewise."""

    def run(images: Tensor) -> Tensor:
        x: Map = Local(Kept.of(images), network.conv_in, 1, 1)
        for stage in network.down_blocks:
            x = _stage(stage, x, area)
        h = network.mid_block(x.rows(0, x.height))
        return network.conv_out(silu(network.conv_norm_out(h)))

    return run


def _stage(stage: Any, x: Map, area: int) -> Map:
    for resnet in stage.resnets:
        x = _kept(_residual(resnet, x, area), area)
    if stage.downsamplers is not None:  # pads below alone
        return _kept(Local(x, stage.downsamplers[0], after=1, down=2), area)
    return x if stage.upsamplers is None else Local(x, stage.upsamplers[0], 1, 1, up=2)  # four times as large: not kept


def _residual(block: Any, x: Map, area: int) -> Map:
    """A ResnetBlock without embedding."""
    if x.height <= _step(x, area):
        return Kept.of(block(x.rows(0, x.height)))
    norm1 = _normed(block.norm1, x, area)
    norm2 = _normed(block.norm2, Local(x, lambda s: block.conv1(silu(norm1(s))), 1, 1), area)

    def run(s: Tensor) -> Tensor:
        h = block.conv2(silu(norm2(block.conv1(silu(norm1(s))))))
        return h.add_(s if block.conv_shortcut is None else block.conv_shortcut(s))

    return Local(x, run, 2, 2)


def _normed(norm: nn.GroupNorm, x: Map, area: int) -> Function:
    """GroupNorm by the statistics of all of `x`: the mean of its strips' variances and of their means' distances from
    the mean."""
    shares, means, variances = [], [], []
    for a, b in _strips(x, area):
        strip = x.rows(a, b).float().unflatten(1, (norm.num_groups, -1))  # (B, G, C / G, rows, W)
        variance, mean = torch.var_mean(strip, (2, 3, 4), correction=0)  # (B, G)
        shares.append((b - a) / x.height)
        means.append(mean)
        variances.append(variance)
    mean = _sum(shares, means)
    variance = _sum(shares, [v + (m - mean).square() for v, m in zip(variances, means, strict=True)])
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight.float()  # (B, C)
    offset = norm.bias.float() - mean.repeat_interleave(each, 1) * scale
    scale, offset = scale[..., None, None], offset[..., None, None]
    return lambda s: torch.addcmul(offset, s.float(), scale).to(s.dtype)


def _sum(weights: list[float], terms: list[Tensor]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, terms, strict=True)]).sum(0)


def _kept(x: Map, area: int) -> Kept:
    """The map computed and kept, in the place of its source where that is a kept map of the same shape, and else in new
    memory while the source is let go."""
    if isinstance(x, Kept):
        return x
    kept: Kept | None = None
    computed: tuple[int, Tensor] | None = None
    for a, b in _strips(x, area):
        strip = x.rows(a, b)
        kept = kept or _own_place(x, strip) or Kept(x.height, x.width)
        if computed is not None:
            kept.write(*computed)  # a strip late: this one read the last rows of what it takes the place of
        computed = a, strip
        if not (isinstance(x, Local) and x.source is kept):
            x.forget(b)
    assert kept is not None and computed is not None
    kept.write(*computed)
    return kept


def _own_place(x: Map, strip: Tensor) -> Kept | None:
    """The map that x is made of, if it is kept and of x's shape."""
    source = x.source if isinstance(x, Local) and x.up == x.down == 1 else None
    if not isinstance(source, Kept) or torch.is_grad_enabled():
        return None
    return source if source.pieces[0].shape[1] == strip.shape[1] else None


def _strips(x: Map, area: int) -> Iterator[tuple[int, int]]:
    step = _step(x, area)
    return ((a, min(a + step, x.height)) for a in range(0, x.height, step))


def _step(x: Map, area: int) -> int:
    return max(LEAST_ROWS, area // x.width)
