"""Random numbers as a pure function of (seed, stream, position), which makes exact resuming possible.

Nothing in training draws from a global generator. The numbers of the sample at global position p are a hash of
(seed, stream, p, element), whatever the batch, the rank, the device and the process. The hash is
SplitMix64's finalizer (Steele, Lea, Flood 2014), a counter-based generator in a dozen integer operations.
"""

import math
import zlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer


def uniform(seed: int, stream: str, position: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in (0, 1), float32, (B, *shape), for the samples at `position` (B,) int64."""
    bits = _bits(seed, stream, position, math.prod(shape))  # (B, n)
    return _to_unit(bits).view(-1, *shape)


def normal(seed: int, stream: str, position: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers, float32, (B, *shape), by Box and Muller's transform of two uniforms."""
    n = math.prod(shape)
    half = (n + 1) // 2
    unit = _to_unit(_bits(seed, stream, position, 2 * half))  # (B, 2 half)
    radius = unit[:, :half].log().mul_(-2).sqrt_()
    angle = unit[:, half:].mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n].reshape(-1, *shape)


def low_discrepancy(seed: int, stream: str, position: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), (B,), that neighbouring positions spread evenly: Weyl's sequence of the golden ratio.

    A batch of B consecutive samples then covers all noise levels, which reduces the variance of the loss (the idea, for
    a single batch, is in Kingma et al. 2021, appendix I.1).
    """
    return _to_unit(position.long() * _GOLDEN + _key(seed, stream))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A random permutation of n samples for an epoch, (n,) int64, by NumPy's Philox generator."""
    key = np.array([seed & (2**64 - 1), epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


def _bits(seed: int, stream: str, position: Tensor, n: int) -> Tensor:
    """64 random bits as int64, (B, n)."""
    row = _mix(position.long() * _GOLDEN + _key(seed, stream))  # (B,)
    column = torch.arange(1, n + 1, device=position.device) * _GOLDEN  # (n,)
    return _mix(row[:, None] + column)


@lru_cache(maxsize=256)
def _key(seed: int, stream: str) -> int:
    """The hash of seed and stream, as a Python number: a tensor on the host would have to be copied to the device."""
    return int(_mix(torch.tensor(seed, device="cpu") * _GOLDEN + zlib.crc32(stream.encode())))


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _to_unit(bits: Tensor) -> Tensor:
    """The upper 23 bits as a float32 in the open interval (0, 1): with 24 the half would round up to 1."""
    return (_shift(bits, 41).float() + 0.5) * 2.0**-23
