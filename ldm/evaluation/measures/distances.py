"""How far apart two sets of images are in a network's features, and how well they cover each other.

Only in Inception's features is a Frechet distance called FID, and a kernel distance KID.
"""

import torch
from torch import Tensor

CHUNK = 1024  # rows of a distance or kernel matrix at once


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features (N, D), (M, D) (Heusel et al. 2017, eq. 6).

    With centred features X, Y and A = X'X / (n - 1), B = Y'Y / (m - 1), the trace of the root is the sum of the
    singular values of X Y' / sqrt((n - 1)(m - 1)): no root of an unsymmetric matrix, no negative eigenvalues to clip.
    In float64. The value falls as the sets grow, by an amount that depends on the model: compare at equal numbers only.
    """
    x, y = _centred(a), _centred(b)
    spread = x.square().sum() + y.square().sum()
    root = torch.linalg.svdvals(_compressed(x) @ _compressed(y).T).sum()
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum()
    return max(0.0, float(gap + spread - 2 * root))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, section 4 and eq. 4).

    Its expectation doesn't depend on the numbers of samples; around zero it may be negative.
    """
    x, y = a.double(), b.double()
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _kernel_diagonal(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel_diagonal(y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))


def precision_recall(generated: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision: the share of `generated` (N, D) inside the manifold of `real` (M, D); recall: the other way round.

    A set's manifold is the union of the balls around its members that reach their k-th nearest neighbour (Kynkaanniemi
    et al. 2019, eq. 1 to 3). Needs more than k members in each. Both depend on N and M.
    """
    return _covered(generated, real, k), _covered(real, generated, k)


def _covered(points: Tensor, support: Tensor, k: int) -> float:
    points, support = points.double(), support.double()
    radius = torch.cat([_kth_neighbour(rows, support, k) for rows in support.split(CHUNK)])  # (M,)
    radius = radius + 1e-6 * support.square().sum(1).mean().sqrt()  # duplicates have radius 0, up to rounding
    inside = [(torch.cdist(rows, support) <= radius).any(1) for rows in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def _kth_neighbour(rows: Tensor, support: Tensor, k: int) -> Tensor:
    """The distance from each of `rows`, a part of `support`, to its k-th neighbour there, not counting itself."""
    return torch.cdist(rows, support).kthvalue(k + 1, 1).values


def _centred(features: Tensor) -> Tensor:
    """Features X minus their mean, scaled so that X'X is their covariance."""
    x = features.double()
    return (x - x.mean(0)) / max(len(x) - 1, 1) ** 0.5


def _compressed(x: Tensor) -> Tensor:
    """At most D rows with the same X'X as the features (N, D)."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(rows @ y.T / x.shape[1] + 1).pow(3).sum() for rows in x.split(CHUNK)]).sum()


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
