"""Layers and helpers that several networks share, under the names that adapters and converters use."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def format_on(device: torch.device) -> torch.memory_format:
    """The memory layout of feature maps and convolution kernels: channels last, except on MPS.

    It is faster by measurement on CPUs, and NVIDIA's Tensor Cores need no transposes for it ("Convolutional Layers
    User's Guide"). The kernels of MPS are written for channels first.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def laid_out(module: Any, device: torch.device) -> Any:
    """The module with its convolution kernels in the layout of `format_on`; they are built with channels last."""
    layout = format_on(device)
    return module if layout == torch.channels_last else module.to(memory_format=layout)


def whole_patches(x: Tensor, patch: int) -> Tensor:
    """`x` (B, C, H, W), padded with zeros on the right and below until its sides are multiples of `patch`."""
    # Not -size % patch: torch can't compile the remainder of a negative size that varies.
    right, below = ((size + patch - 1) // patch * patch - size for size in (x.shape[3], x.shape[2]))
    return F.pad(x, (0, right, 0, below))


def zero_(module: nn.Module) -> nn.Module:
    """Zeroes a module's parameters: a block whose last layer is zero starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), in place unless gradients are recorded. The caller must not use `x` again."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def groups_of(channels: int) -> int:
    """The number of groups of a norm: 32, as in LDM, if it divides `channels`, else the largest power of two that
    does."""
    return math.gcd(32, channels)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of `t` (B,): (B, dim), cosines first (Vaswani et al. 2017, in Stable Diffusion's order).

    If `dim` is odd, the last feature is 0.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(max_period) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency  # (B, half)
    return F.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, dim % 2))  # (B, dim)


def guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """Sinusoidal features (B, dim) float32 of guidance scales (B,), sines first (Luo et al. 2023).

    They are those of 1000 (scale - 1), at frequencies from 1 to 1/10,000 inclusive. Since the angles are large, the
    frequencies are rounded exactly as in diffusers: the step of their logarithm is a float32.
    """
    half = dim // 2
    step = float(torch.tensor(10_000.0, device="cpu").log() / (half - 1))
    frequency = torch.exp(torch.arange(half, device=scale.device, dtype=torch.float32) * -step)
    angle = 1000 * (scale.float()[:, None] - 1) * frequency  # (B, half)
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoidal features to the embedding that every residual block reads.

    With `guidance_dim` the features of a guidance scale are added to those of the noise level, through a linear layer
    that starts at 0.
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int | None = None):
        super().__init__()
        self.guidance_dim = guidance_dim
        self.cond_proj = zero_(nn.Linear(guidance_dim, dim, bias=False)) if guidance_dim else None
        self.linear_1 = nn.Linear(dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Features `x` (B, dim) and guidance scales `guidance` (B,), by default 1 -> (B, out_dim)."""
        if self.cond_proj is not None:
            assert self.guidance_dim
            scale = x.new_ones(len(x), dtype=torch.float32) if guidance is None else guidance
            x = x + self.cond_proj(guidance_embedding(scale, self.guidance_dim).to(x.dtype))
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU and convolution, twice, added to the input (Ho et al. 2020).

    The second half reads the time embedding, if there is one. With `scale_shift` the embedding modulates the second
    norm (Dhariwal and Nichol 2021); otherwise it is added before that norm.
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
        """`x` (B, C, H, W) and `embedding` (B, E), with SiLU applied -> (B, out_channels, H, W)."""
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


class Downsample(nn.Module):
    """A convolution of stride 2. The autoencoder pads only on the right and below, the U-Net on all sides."""

    def __init__(self, channels: int, *, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour interpolation to twice the size, or to `size` where a skip has an odd size, and a
    convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`x` (B, C, H, W) -> (B, C, 2 H, 2 W), or (B, C, *size)."""
        return self.conv(F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))
