"""A small text encoder, trained together with the diffusion network."""

import torch
from torch import Tensor, nn

from ldm.networks.attention import Attention, FeedForward
from ldm.networks.layers import zero_


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each after a norm and added to its input; it starts as the identity."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        zero_(self.attn.to_out[0])
        zero_(self.ff.net[2])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, L, dim), `mask` (B, L) True on real tokens -> (B, L, dim)."""
        x = x + self.attn(self.norm1(x), mask=mask)
        return x + self.ff(self.norm2(x))


class TextTransformer(nn.Module):
    """One state for each token: learned positions, `depth` pre-norm Transformer blocks, padding never attended to.

    At first the blocks are the identity, so a state is the sum of the embeddings of its token and position, and
    cross-attention can distinguish words from the first step on. With the usual small embeddings and random blocks, the
    states of a sentence start nearly equal, and a short run spends much of its time on separating them.
    """

    def __init__(self, vocab_size: int, length: int, dim: int = 192, depth: int = 2, heads: int = 4):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Parameter(0.5 * torch.randn(length, dim))
        self.blocks = nn.ModuleList([EncoderBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`ids` (B, L) int64, `mask` (B, L) True on real tokens -> (B, L, dim)."""
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]  # (B, L, D)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
