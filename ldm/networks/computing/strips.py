"""An encoder or decoder computed strip by strip, with the result of the whole map, so that large images need less
memory.

Convolutions read a few rows beyond a strip, and the statistics of GroupNorm are computed over the whole map in an
earlier pass. Only the output of each residual block is kept, in the memory of its input if the shape is the same. What
lies between is computed twice: for the statistics of the second norm, and for the output.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.networks.layers import silu

PIECE_BYTES = 2**25  # glibc returns larger pieces to the system as soon as they are freed; smaller ones leave holes
LEAST_ROWS = 4  # of a strip: with fewer, most of the work would be the 2 rows beyond it, which one strip has to hold
Function = Callable[[Tensor], Tensor]


class Map(Protocol):
    """A feature map (B, C, height, width) that is read by rows."""

    @property
    def height(self) -> int:
        """Its number of rows."""
        ...

    @property
    def width(self) -> int:
        """Its number of columns."""
        ...

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b - 1, (B, C, b - a, width)."""
        ...

    def forget(self, a: int) -> None:
        """Rows before a won't be read again."""
        ...


class Kept:
    """A map in memory, in pieces one below the other, which are made as rows are written and freed as they are
    forgotten."""

    def __init__(self, height: int, width: int, pieces: list[Tensor] | None = None):
        self.height, self.width, self.pieces = height, width, pieces or []
        self.first = 0  # the row at which the first piece begins

    @classmethod
    def of(cls, x: Tensor) -> "Kept":
        """The map `x` (B, C, H, W) as a single piece."""
        return cls(x.shape[2], x.shape[3], [x])

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b - 1, (B, C, b - a, width)."""
        found = [piece[:, :, max(a - at, 0) : b - at] for piece, at in self._over(a, b)]
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def write(self, a: int, rows: Tensor) -> None:
        """Writes `rows` (B, C, n, width) from row a on, over what is there or as the next ones."""
        b = a + rows.shape[2]
        while (end := self.first + sum(piece.shape[2] for piece in self.pieces)) < b:
            self.pieces.append(self._piece(rows, self.height - end))
        for piece, at in self._over(a, b):
            low, high = max(a, at), min(b, at + piece.shape[2])
            piece[:, :, low - at : high - at] = rows[:, :, low - a : high - a]

    def forget(self, a: int) -> None:
        """Frees the pieces that lie before row a."""
        while self.pieces and self.first + self.pieces[0].shape[2] <= a:
            self.first += self.pieces.pop(0).shape[2]

    def _over(self, a: int, b: int) -> list[tuple[Tensor, int]]:
        """The pieces that hold rows a to b - 1, each with its first row."""
        starts = itertools.accumulate((piece.shape[2] for piece in self.pieces), initial=self.first)
        return [(p, at) for p, at in zip(self.pieces, starts, strict=False) if at < b and a < at + p.shape[2]]

    def _piece(self, like: Tensor, most: int) -> Tensor:
        """New memory of about PIECE_BYTES for at most `most` rows, otherwise shaped as `like` (B, C, n, width)."""
        batch, channels, _, width = like.shape
        count = min(most, PIECE_BYTES // (batch * channels * width * like.element_size()) + 1)
        size, channels_last = (batch, channels, count, width), torch.channels_last
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=channels_last)


@dataclass(frozen=True)
class Local:
    """A map that `run` computes from rows of `source` when it is read.

    Its row i depends on the rows of `source` from i down / up - before to i down / up + after. `run` pads with zeros as
    the whole network does; where the edge of a strip isn't that of the map, the rows that depend on them are cut off.
    """

    source: Map
    run: Function
    before: int = 0
    after: int = 0
    up: int = 1
    down: int = 1

    @property
    def height(self) -> int:
        """Its number of rows."""
        return self.source.height * self.up // self.down

    @property
    def width(self) -> int:
        """Its number of columns."""
        return self.source.width * self.up // self.down

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b - 1, (B, C, b - a, width), computed now."""
        low = self._lowest(a)
        high = min(self.source.height, -(-b * self.down // self.up) + self.after)
        first = low * self.up // self.down
        return self.run(self.source.rows(low, high))[:, :, a - first : b - first]

    def forget(self, a: int) -> None:
        """Forgets the rows of `source` on which no row from a on depends."""
        self.source.forget(self._lowest(a))

    def _lowest(self, a: int) -> int:
        return max(0, a * self.down // self.up - self.before)


def decoder(stage: Any, area: int) -> Function:
    """The function of the decoder of the autoencoder `stage`, in strips of about `area` positions. At the latents' size
    everything is computed at once, attention too."""
    network: Any = stage.decoder
    if stage.reach is not None:
        return _whole_network(network, stage.reach["decoder"], area, up=stage.factor)

    def run(z: Tensor) -> Tensor:
        """`z` (B, C, h, w) -> (B, out, H, W)."""
        x: Map = Kept.of(network.mid_block(network.conv_in(z)))
        for level in network.up_blocks:
            x = _stage(level, x, area)
        norm = _normed(network.conv_norm_out, x, area)
        out = _kept(Local(x, lambda s: network.conv_out(silu(norm(s))), 1, 1), area)
        return out.rows(0, out.height)

    return run


def encoder(stage: Any, area: int) -> Function:
    """The function of the encoder of the autoencoder `stage`, in strips of about `area` positions: see `decoder`."""
    network: Any = stage.encoder
    if stage.reach is not None:
        return _whole_network(network, stage.reach["encoder"], area // stage.factor**2, down=stage.factor)

    def run(images: Tensor) -> Tensor:
        """`images` (B, C, H, W) -> (B, out, h, w)."""
        x: Map = Local(Kept.of(images), network.conv_in, 1, 1)
        for level in network.down_blocks:
            x = _stage(level, x, area)
        h = network.mid_block(x.rows(0, x.height))
        return network.conv_out(silu(network.conv_norm_out(h)))

    return run


def _whole_network(network: Function, reach: int, area: int, up: int = 1, down: int = 1) -> Function:
    """The function of a network without norms and attention, which a strip passes from its first layer to its last."""

    def run(x: Tensor) -> Tensor:
        """`x` (B, C, h, w) -> (B, out, h up / down, w up / down)."""
        out = _kept(Local(Kept.of(x), network, reach, reach, up=up, down=down), area)
        return out.rows(0, out.height)

    return run


def _stage(stage: Any, x: Map, area: int) -> Map:
    """The output of a Stage of the autoencoder for the map `x`."""
    for resnet in stage.resnets:
        x = _kept(_residual(resnet, x, area), area)
    if stage.downsamplers is not None:  # pads only below
        return _kept(Local(x, stage.downsamplers[0], after=1, down=2), area)
    return x if stage.upsamplers is None else Local(x, stage.upsamplers[0], 1, 1, up=2)  # four times as large: not kept


def _residual(block: Any, x: Map, area: int) -> Map:
    """The output of a ResnetBlock without embedding for the map `x`."""
    if x.height <= _step(x, area):
        return Kept.of(block(x.rows(0, x.height)))
    norm1 = _normed(block.norm1, x, area)
    norm2 = _normed(block.norm2, Local(x, lambda s: block.conv1(silu(norm1(s))), 1, 1), area)

    def run(s: Tensor) -> Tensor:
        """A strip `s` (B, C, rows, W) -> (B, out, rows, W)."""
        h = block.conv2(silu(norm2(block.conv1(silu(norm1(s))))))
        return h.add_(s if block.conv_shortcut is None else block.conv_shortcut(s))

    return Local(x, run, 2, 2)


def _normed(norm: nn.GroupNorm, x: Map, area: int) -> Function:
    """GroupNorm with the statistics of the whole of `x`.

    The variance is the mean of the strips' variances plus the variance of their means.
    """
    shares, means, variances = [], [], []
    for a, b in _strips(x, area):
        strip = x.rows(a, b).float().unflatten(1, (norm.num_groups, -1))  # (B, G, C / G, rows, W)
        variance, mean = torch.var_mean(strip, (2, 3, 4), correction=0)  # (B, G)
        shares.append((b - a) / x.height)
        means.append(mean)
        variances.append(variance)
    mean = _sum(shares, means)
    variance = _sum(shares, [v + (m - mean).square() for v, m in zip(variances, means, strict=True)])
    channels = norm.num_channels // norm.num_groups  # of a group
    scale = (variance + norm.eps).rsqrt().repeat_interleave(channels, 1) * norm.weight.float()  # (B, C)
    offset = norm.bias.float() - mean.repeat_interleave(channels, 1) * scale
    scale, offset = scale[..., None, None], offset[..., None, None]
    return lambda s: torch.addcmul(offset, s.float(), scale).to(s.dtype)


def _sum(weights: list[float], terms: list[Tensor]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, terms, strict=True)]).sum(0)


def _kept(x: Map, area: int) -> Kept:
    """The map, computed and kept in memory. If its source is a kept map of the same shape, it overwrites the source;
    else it takes new memory, while the source's rows are freed."""
    if isinstance(x, Kept):
        return x
    kept: Kept | None = None
    computed: tuple[int, Tensor] | None = None
    for a, b in _strips(x, area):
        strip = x.rows(a, b)
        kept = kept or _own_place(x, strip) or Kept(x.height, x.width)
        if computed is not None:
            kept.write(*computed)  # one strip late, since this strip reads the last rows that the one before overwrites
        computed = a, strip
        if not (isinstance(x, Local) and x.source is kept):
            x.forget(b)
    assert kept is not None and computed is not None
    kept.write(*computed)
    return kept


def _own_place(x: Map, strip: Tensor) -> Kept | None:
    """The source of `x`, if it is kept in memory and has the shape of `x`, so that `x` may overwrite it."""
    source = x.source if isinstance(x, Local) and x.up == x.down == 1 else None
    if not isinstance(source, Kept) or torch.is_grad_enabled():
        return None
    return source if source.pieces[0].shape[1] == strip.shape[1] else None


def _strips(x: Map, area: int) -> Iterator[tuple[int, int]]:
    """First row and end of each strip of about `area` positions."""
    step = _step(x, area)
    return ((a, min(a + step, x.height)) for a in range(0, x.height, step))


def _step(x: Map, area: int) -> int:
    return max(LEAST_ROWS, area // x.width)
