"""Figures of each image's pixels: fingerprints for finding copies, contrast, and detail."""

import hashlib
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.checking.collection import Collection

SIDE = 8  # blocks a side
_COARSE = 4  # pixels: finer detail than this counts
_CHUNK = 512  # images computed at once
_FLAT = 2.5  # of 255: images whose brightest and darkest pixel differ by less are uniform
_LITTLE, _LESS = 0.03, 0.15  # share of the variance that is fine detail, and its ratio to the median of all images


@dataclass
class Pixels:
    """Figures of N images.

    - `digests` (N,) uint64: a hash of all pixels;
    - `hashes` (N,) uint64: the difference hash, 64 bits that say whether a block of the image is darker than the next
      one to its right (Krawetz 2013, dHash);
    - `blocks` (N, D) float32: the mean of each of 8 x 8 blocks in at most three channels, from 0 to 255;
    - `ranges` (N,): the largest difference between two pixels of a channel, from 0 to 255;
    - `detail` (N,): the share of the variance that is lost by averaging over blocks of 4 x 4 pixels; nan for images
      smaller than 16.
    """

    digests: np.ndarray
    hashes: np.ndarray
    blocks: np.ndarray
    ranges: np.ndarray
    detail: np.ndarray

    def uniform(self) -> np.ndarray:
        """The numbers of images of a single colour."""
        return np.flatnonzero(self.ranges < _FLAT)

    def blurred(self) -> np.ndarray:
        """The numbers of images with hardly any detail, in absolute terms and compared with the others; the worst
        first."""
        known = np.isfinite(self.detail) & (self.ranges >= _FLAT)
        if not known.any():
            return np.array([], np.int64)
        limit = min(_LITTLE, _LESS * float(np.median(self.detail[known])))
        rows = np.flatnonzero(known & (self.detail < limit))
        return rows[np.argsort(self.detail[rows])]


def measure(collection: Collection) -> Pixels:
    """The figures of all images."""
    found = [_figures(part) for chunk in collection.chunks() for part in _split(chunk)]
    return Pixels(**{f.name: np.concatenate([getattr(part, f.name) for part in found]) for f in fields(Pixels)})


def _split(chunk: np.ndarray) -> list[np.ndarray]:
    return [chunk[start : start + _CHUNK] for start in range(0, len(chunk), _CHUNK)]


def _figures(stored: np.ndarray) -> Pixels:
    """The figures of images (n, C, H, W) uint8 or uint16."""
    top = np.iinfo(stored.dtype).max
    x = torch.from_numpy(stored[:, :3].astype(np.float32)).mul_(255 / top)  # (n, C, H, W)
    grey = x.mean(1, keepdim=True)  # (n, 1, H, W)
    steps = F.adaptive_avg_pool2d(grey, (SIDE, SIDE + 1))[:, 0]  # (n, 8, 9)
    flat = x.flatten(2)
    return Pixels(
        digests=np.array([_digest(image) for image in stored], np.uint64),
        hashes=_packed(steps[..., :-1] + 0.5 < steps[..., 1:]),  # half a level: noise in flat areas sets no bits
        blocks=F.adaptive_avg_pool2d(x, SIDE).flatten(1).numpy(),
        ranges=(flat.amax(2) - flat.amin(2)).amax(1).numpy(),
        detail=_detail(grey).numpy(),
    )


def _digest(image: np.ndarray) -> int:
    content = np.ascontiguousarray(image).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=str(image.shape).encode()[:16]).digest())


def _packed(bits: Tensor) -> np.ndarray:
    """Bits (n, 8, 8) packed into (n,) uint64."""
    return np.packbits(bits.flatten(1).numpy(), axis=1).view(">u8")[:, 0].astype(np.uint64)


def _detail(grey: Tensor) -> Tensor:
    """The share of the variance of (n, 1, H, W) within blocks of 4 x 4 pixels, (n,)."""
    height, width = (side // _COARSE * _COARSE for side in grey.shape[2:])
    if min(height, width) < 4 * _COARSE:
        return torch.full((len(grey),), float("nan"))
    grey = grey[:, :, :height, :width]
    means = F.avg_pool2d(grey, _COARSE)
    whole, between = grey.flatten(1).var(1, correction=0), means.flatten(1).var(1, correction=0)
    return 1 - between / whole.clamp(min=1e-6)
