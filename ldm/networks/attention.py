"""Attention and the Transformer blocks of U-Net, DiT, autoencoder and text encoder, under the names that adapters and
converters use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.networks.layers import zero_

# On a CPU a plain batched product is faster than the fused kernel up to about this many query-key pairs per head.
PLAIN_ATTENTION_PAIRS = 64 * 128

_seen: ContextVar[dict[tuple[int, int], tuple[Tensor, ...]] | None] = ContextVar("_seen", default=None)


@contextmanager
def constant_contexts() -> Iterator[None]:
    """In this block the keys and values of a context tensor are computed once, when it is first attended to.

    They are the same at every step of a sampling run. Neither weights nor contexts may change in the block, and no
    gradient flows.
    """
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


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
        """`x` (B, N, C) and `context` (B, L, D), attended to where `mask` (B, L) is True -> (B, N, C)."""
        k, v = self._keys_and_values(x) if context is None else self._of_context(context)
        return self.to_out[0](attend(self.to_q(x), k, v, heads=self.heads, mask=mask))

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)

    def _of_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or (seen := _seen.get()) is None:
            return self._keys_and_values(context)
        key = (id(self), id(context))
        if key not in seen:
            # The context is stored too, so that no other tensor can get its id.
            seen[key] = (context, *self._keys_and_values(context))
        _, k, v = seen[key]
        return k, v


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over `heads` heads: (B, N, C), (B, L, C), (B, L, C) -> (B, N, C)."""
    b, n, c = q.shape
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N or L, d)
    keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
    compiling = torch.compiler.is_compiling()  # then a choice by size would need a graph for each size
    if q.device.type == "cpu" and not compiling and n * k.shape[2] <= PLAIN_ATTENTION_PAIRS:
        scores = (q * (c // heads) ** -0.5) @ k.transpose(2, 3)  # (B, heads, N, L)
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return out.transpose(1, 2).reshape(b, n, c)


class PixelAttention(Attention):
    """Self-attention with one head over the positions of a normalised feature map, added to the map."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`x` (B, C, H, W) -> (B, C, H, W); there is no context."""
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + super().forward(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, N, dim) -> (B, N, out_dim)."""
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer, `mult` times as wide, and a linear layer back."""

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, N, dim) -> (B, N, dim)."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention if there is a context, and feed-forward, each after a norm and added to its
    input."""

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
        """`x` (B, N, dim), `context` (B, L, context_dim), `mask` (B, L) -> (B, N, dim)."""
        x = x + self.attn1(self.norm1(x))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, which attend to the context (Rombach et al. 2022, figure
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
        """`x` (B, C, H, W), `context` (B, L, context_dim), `mask` (B, L) -> (B, C, H, W)."""
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
