"""Means, covariances and the distance of them are what NumPy and SciPy give, and files are those of other tools."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.evaluation.measures.distances import frechet_distance
from ldm.evaluation.published.statistics import Moments, Statistics, distances, frechet_of, read_statistics


def features(n: int, d: int, seed: int) -> torch.Tensor:
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(seed + 50))
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mixing + seed


def moments(rows: torch.Tensor, batch: int) -> Moments:
    found = Moments()
    for part in rows.split(batch):
        found.add(part)
    return found


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_add_up_to_numpy_s_mean_and_covariance(batch: int) -> None:
    rows = features(50, 6, 3) + 1000  # where a sum of squares would cancel
    found = moments(rows, batch).done()
    assert np.allclose(found.mu, rows.double().numpy().mean(0), rtol=1e-12)
    assert np.allclose(found.sigma, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(200, 8), (12, 30)])  # full rank, and fewer images than features
def test_the_distance_is_scipy_s(n: int, d: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = moments(features(n, d, 0), 64).done(), moments(features(n, d, 1), 64).done()
    root = linalg.sqrtm(a.sigma.numpy() @ b.sigma.numpy()).real
    expected = (a.mu - b.mu).square().sum() + np.trace(a.sigma.numpy() + b.sigma.numpy() - 2 * root)
    assert frechet_of(a, b) == pytest.approx(float(expected), rel=1e-4)
    assert frechet_of(a, b) == pytest.approx(frechet_distance(features(n, d, 0), features(n, d, 1)), rel=1e-4)
    assert frechet_of(a, a) < 1e-4 * frechet_of(a, b)


def test_statistics_are_read_as_they_were_written(tmp_path: Path) -> None:
    one = Statistics(tuple(moments(features(20, d, 0), 8).done() for d in (5, 3)), 20, "weights clean", "20 images")
    one.save(tmp_path / "sub" / "stats.npz")
    found = read_statistics(tmp_path / "sub" / "stats.npz")
    assert (found.images, found.protocol, found.what) == (20, "weights clean", "20 images")
    assert all(torch.equal(a.sigma, b.sigma) for a, b in zip(one.gaussians, found.gaussians, strict=True))
    with np.load(tmp_path / "sub" / "stats.npz") as file:  # as pytorch-fid and ADM's evaluator open it
        assert file["mu"].shape == (5,) and file["sigma"].shape == (5, 5) and file["sigma_s"].shape == (3, 3)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    mu, sigma = np.arange(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2])
    short, long = (read_statistics(tmp_path / f"{name}.npz") for name in ("pytorch_fid", "adm"))
    assert (len(short.gaussians), len(long.gaussians), short.protocol) == (1, 2, "")
    assert distances(short, long, ("FID", "sFID")) == {"FID": pytest.approx(0, abs=1e-9)}
    assert set(distances(long, long, ("FID", "sFID"))) == {"FID", "sFID"}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros(3)}, "no statistics, mu and sigma, but arr_0"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "have the shapes"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "infinite or no numbers"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=words):
        read_statistics(tmp_path / "stats.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UserError, match="can't be read as statistics"):
        read_statistics(tmp_path / "text.npz")
    with pytest.raises(UserError, match="can't be read as statistics"):
        read_statistics(tmp_path / "absent.npz")
