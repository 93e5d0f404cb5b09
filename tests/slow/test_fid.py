"""FID by `score.py` is torch-fidelity's, on the same images and the same random weights of Inception."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from ldm.commands import cli
from ldm.evaluation.published.statistics import read_statistics
from tests.evaluation.published.models import write_inception

pytestmark = pytest.mark.slow
SIDE, N = 64, 24


def write_crops(folder: Path, seed: int, blur: float) -> Path:
    """Crops of photographs as PNG files."""
    folder.mkdir()
    rng, photos = np.random.default_rng(seed), load_sample_images().images
    for i in range(N):
        x, y = rng.integers(0, 640 - 2 * SIDE), rng.integers(0, 427 - 2 * SIDE)
        crop = Image.fromarray(photos[i % 2]).crop((x, y, x + 2 * SIDE, y + 2 * SIDE)).resize((SIDE, SIDE))
        crop.filter(ImageFilter.GaussianBlur(blur)).save(folder / f"{i:02d}.png")
    return folder


def test_fid_is_torch_fidelity_s(tmp_path: Path) -> None:
    fidelity = pytest.importorskip("torch_fidelity")
    weights = write_inception(tmp_path / "inception.pth")
    real, fake = write_crops(tmp_path / "real", 0, 0), write_crops(tmp_path / "fake", 1, 1.5)
    theirs = fidelity.calculate_metrics(
        input1=str(fake),
        input2=str(real),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=8,
        feature_extractor_weights_path=str(weights),
    )["frechet_inception_distance"]
    words = [f"samples={fake}", f"inception={weights}", "resizing=tensorflow", "batch_size=8"]
    words += [f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", "device=cpu"]
    statistics = tmp_path / "real.npz"
    cli.run("score", [*words, f"reference={real}", f"save_reference={statistics}"])
    first = read_score(tmp_path / "out")
    assert first["FID"] == pytest.approx(theirs, rel=1e-3)
    assert read_statistics(statistics).gaussians[1].mu.shape == (2023,)
    cli.run("score", [*words, f"reference={statistics}"])
    again = read_score(tmp_path / "out")
    assert (again["FID"], again["sFID"]) == (first["FID"], first["sFID"])


def read_score(folder: Path) -> dict:
    import json

    return json.loads((folder / "score.json").read_text())
