"""Means and covariances of features, accumulated batch by batch, as .npz files, and the distance between two of them.

Files have the keys of ADM, pytorch-fid and clean-fid: `mu`, `sigma`, and for the spatial features of sFID `mu_s`,
`sigma_s`. Ours say in further keys by what they were made, which other tools leave alone.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.files import atomic_write

KEYS = (("mu", "sigma"), ("mu_s", "sigma_s"))


class Moments:
    """The mean (D,) and the sum of squared deviations (D, D) of features so far, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(0)

    def add(self, features: Tensor) -> None:
        """Adds a batch (B, D): the deviations from its own mean, and those of the two means (Chan et al. 1979)."""
        x = (features.cpu() if features.device.type == "mps" else features).double()  # MPS has no float64
        n, mean = len(x), x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        if not self.count:
            self.count, self.mean, self.scatter = n, mean, scatter
            return
        total, gap = self.count + n, mean - self.mean
        self.scatter += scatter + torch.outer(gap, gap) * (self.count * n / total)
        self.mean = self.mean + gap * (n / total)
        self.count = total

    def done(self) -> "Gaussian":
        """The mean and the covariance, over n - 1."""
        return Gaussian(self.mean.cpu(), (self.scatter / max(self.count - 1, 1)).cpu())


@dataclass(frozen=True)
class Gaussian:
    """The mean (D,) and covariance (D, D) of features, float64."""

    mu: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Statistics:
    """One Gaussian for each kind of feature (those of FID, and where there are any those of sFID), and their origin:
    the number of `images` (0: unknown), the `protocol` (weights and resizing; empty: unknown), and in words `what`."""

    gaussians: tuple[Gaussian, ...]
    images: int = 0
    protocol: str = ""
    what: str = ""

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        arrays: dict[str, Any] = {
            "images": np.array(self.images),
            "protocol": np.array(self.protocol),
            "what": np.array(self.what),
        }
        for (mu, sigma), found in zip(KEYS, self.gaussians, strict=False):
            arrays |= {mu: found.mu.numpy(), sigma: found.sigma.numpy()}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: np.savez(file, **arrays))


def read_statistics(path: Path) -> Statistics:
    """The statistics in a .npz file of this or another tool. Raises UserError for any other content."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [_gaussian(file[mu], file[sigma], path) for mu, sigma in KEYS if mu in file and sigma in file]
            declared = {key: file[key].item() for key in ("images", "protocol", "what") if key in file}
            names = ", ".join(file.files)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can't be read as statistics ({error}); name a .npz file with mu and sigma.") from None
    if not found:
        raise UserError(f"{path} holds no statistics, mu and sigma, but {names or 'nothing'}; name another file.")
    return Statistics(tuple(found), **declared)


def holds_images_alone(path: Path) -> bool:
    """Whether a .npz file has images, as ADM's samples, and no statistics, which its references have beside them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "arr_0.npy" in file.namelist() and "mu.npy" not in file.namelist()


def frechet_of(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    (A B)^(1/2) has the eigenvalues of (R B R)^(1/2) with R = A^(1/2), which is symmetric: negative eigenvalues are
    rounding errors, and become 0.
    """
    values, vectors = torch.linalg.eigh(a.sigma)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.sigma @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    gap = (a.mu - b.mu).square().sum()
    return max(0.0, float(gap + a.sigma.trace() + b.sigma.trace() - 2 * trace))


def distances(a: Statistics, b: Statistics, names: Sequence[str]) -> dict[str, float]:
    """The distance in each kind of feature that both have, by name."""
    pairs = zip(names, a.gaussians, b.gaussians, strict=False)
    return {name: frechet_of(one, other) for name, one, other in pairs}


def _gaussian(mu: np.ndarray, sigma: np.ndarray, path: Path) -> Gaussian:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path}: mu and sigma have the shapes {mu.shape} and {sigma.shape}, and have to be (D,) and (D, D)."
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds values that are infinite or no numbers; fetch it again.")
    return Gaussian(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)))
