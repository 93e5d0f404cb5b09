"""The parts that autoencoder, U-Net and text encoder share, under the names that adapters and converters know."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU a plain batched product beats the fused kernel up to about this many query-key pairs a head.
PLAIN_ATTENTION_PAIRS = 64 * 128

_seen: ContextVar[dict[tuple[int, int], tuple[Tensor, ...]] | None] = ContextVar("_seen", default=None)


@contextmanager
def constant_contexts() -> Iterator[None]:
    """Inside, keys and values of a context tensor are computed when it is first attended to, and kept: a prompt's are
    the same at every step of a sampling run. Neither weights nor contexts may change inside, and no gradient flows."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def format_on(device: torch.device) -> torch.memory_format:
    """How feature maps and kernels of convolutions lie in memory: channels last, by measurement on CPUs and as NVIDIA's
    Tensor Cores take them ("Convolutional Layers User's Guide": NHWC needs no transposes); but on MPS, whose kernels
    are for channels first."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def laid_out(module: Any, device: torch.device) -> Any:
    """The module with its kernels as `format_on` says: they are built and loaded with channels last."""
    layout = format_on(device)
    return module if layout == torch.channels_last else module.to(memory_format=layout)


def whole_patches(x: Tensor, patch: int) -> Tensor:
    """`x` (B, C, H, W) with zeros right and below up to sides that are multiples of `patch`."""
    # Not -size % patch: torch can't compile the remainder of a negative size that varies.
    right, below = ((size + patch - 1) // patch * patch - size for size in (x.shape[3], x.shape[2]))
    return F.pad(x, (0, right, 0, below))


def zero_(module: nn.Module) -> nn.Module:
    """Zeroes a module's parameters: a block whose last layer is zero starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of a tensor that nobody else reads: in place where no gradient will ask for what was before."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def groups_of(channels: int) -> int:
    """32 groups where they divide `channels`, as everywhere in LDM; else the largest power of two that does."""
    return math.gcd(32, channels)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of `t` (B,): (B, dim), cosines first (Vaswani et al. 2017, in the order that SD uses).

    Of an odd `dim` the last feature is 0.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(max_period) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency  # (B, half)
    return F.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, dim % 2))  # (B, dim)


def guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of guidance scales (B,): (B, dim), float32, sines first, of 1000 (scale - 1), with
    frequencies from 1 to 1/10,000 inclusive (Luo et al. 2023, as diffusers embeds them).

    Angles are large, so the frequencies have to be rounded as there: their logarithm's step is a float32.
    """
    half = dim // 2
    step = float(torch.tensor(10_000.0, device="cpu").log() / (half - 1))
    frequency = torch.exp(torch.arange(half, device=scale.device, dtype=torch.float32) * -step)
    angle = 1000 * (scale.float()[:, None] - 1) * frequency  # (B, half)
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoidal features to the embedding that every residual block reads.

    With a `guidance_dim` the features of a guidance scale are added to those of the noise level, through a linear layer
    that starts at 0.
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int | None = None):
        super().__init__()
        self.guidance_dim = guidance_dim
        self.cond_proj = zero_(nn.Linear(guidance_dim, dim, bias=False)) if guidance_dim else None
        self.linear_1 = nn.Linear(dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """`x` (B, dim), `guidance` (B,) the scale, without which it counts as 1 -> (B, out_dim)."""
        if self.cond_proj is not None:
            assert self.guidance_dim
            scale = x.new_ones(len(x), dtype=torch.float32) if guidance is None else guidance
            x = x + self.cond_proj(guidance_embedding(scale, self.guidance_dim).to(x.dtype))
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, added to the input (Ho et al. 2020); the second half sees the time
    embedding.

    With `scale_shift` the embedding modulates the second norm (Dhariwal and Nichol 2021), else it is added before it.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embed_dim: int | None = None,
        *,
        groups: int,
        eps: float,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        if embed_dim is not None:
            self.time_emb_proj = nn.Linear(embed_dim, out_channels * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """`x` (B, C, H, W), `embedding` (B, E) already through SiLU -> (B, out_channels, H, W)."""
        h = self.conv1(silu(self.norm1(x)))
        if embedding is None:
            h = self.norm2(h)
        else:
            e = self.time_emb_proj(embedding)[:, :, None, None]  # (B, C or 2C, 1, 1)
            if self.scale_shift:
                scale, shift = e.chunk(2, 1)
                h = torch.addcmul(shift, self.norm2(h), 1 + scale)
            else:
                h = self.norm2(h + e)
        h = self.conv2(self.dropout(silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention of `x` to `context`, or to itself."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, *, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Identity()])

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`x` (B, N, C), `context` (B, L, D), `mask` (B, L) True where there is something to see -> (B, N, C)."""
        k, v = self._keys_and_values(x) if context is None else self._of_context(context)
        return self.to_out[0](attend(self.to_q(x), k, v, heads=self.heads, mask=mask))

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)

    def _of_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or (seen := _seen.get()) is None:
            return self._keys_and_values(context)
        key = (id(self), id(context))
        if key not in seen:
            seen[key] = (context, *self._keys_and_values(context))  # with the context itself, whose id stays its own
        _, k, v = seen[key]
        return k, v


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over `heads` heads: (B, N, C), (B, L, C), (B, L, C) -> (B, N, C)."""
    b, n, c = q.shape
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N or L, d)
    keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
    compiling = torch.compiler.is_compiling()  # where a choice by size would need a graph for each
    if q.device.type == "cpu" and not compiling and n * k.shape[2] <= PLAIN_ATTENTION_PAIRS:
        scores = (q * (c // heads) ** -0.5) @ k.transpose(2, 3)  # (B, heads, N, L)
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return out.transpose(1, 2).reshape(b, n, c)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, feed-forward; each normed before and added."""

    def __init__(self, dim: int, heads: int, context_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.attn2 = None
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a feature map, which attend to the context (Rombach et al. 2022, fig.
    3)."""

    def __init__(
        self, channels: int, heads: int, context_dim: int | None, *, depth: int, groups: int, linear_projection: bool
    ):
        super().__init__()
        self.linear_projection = linear_projection
        projection: Callable[[], nn.Module] = (
            (lambda: nn.Linear(channels, channels)) if linear_projection else (lambda: nn.Conv2d(channels, channels, 1))
        )
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in = projection()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim) for _ in range(depth)])
        self.proj_out = zero_(projection())

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        _, _, height, width = x.shape
        h = self.norm(x)
        if self.linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (B, HW, C)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        if self.linear_projection:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        return x + (h if self.linear_projection else self.proj_out(h))


class Downsample(nn.Module):
    """A convolution of stride 2. The autoencoder pads right and below only, the U-Net on all sides."""

    def __init__(self, channels: int, *, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest neighbour, to twice the size or to `size` where a skip was of odd size, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))
