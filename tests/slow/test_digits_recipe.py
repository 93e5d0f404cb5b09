"""The shipped recipes for digits, judged by a classifier of real digits. Minutes each."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(command: str, runs: Path) -> None:
    words = [sys.executable, *command.split()[1:], f"runs_dir={runs}"]
    subprocess.run(words, cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def judge() -> SVC:
    digits = load_digits()
    return SVC(gamma=0.001, probability=True, random_state=0).fit(digits.data, digits.target)


def read(folder: Path) -> np.ndarray:
    """Images as the 8x8 images of 16 grey values that the judge knows."""
    images = [
        Image.open(path).convert("L").resize((8, 8), Image.Resampling.BOX) for path in sorted(folder.glob("*.png"))
    ]
    return np.stack([np.asarray(p, np.float64).ravel() / 255 * 16 for p in images])


def test_both_stages_generate_the_requested_digits(judge: SVC, tmp_path: Path) -> None:
    run("python train_vae.py data=digits", tmp_path)
    run("python train_ldm.py data=digits", tmp_path)
    run(f"python sample.py run=digits labels=[0,1,2,3,4,5,6,7,8,9] n=20 out={tmp_path / 'grid.png'}", tmp_path)
    requested = np.repeat(np.arange(10), 20)
    right = (judge.predict(read(tmp_path / "grid")) == requested).mean()
    print(f"read as asked: {right:.3f}")
    assert right >= 0.95


def test_the_prior_of_vae_digits_gives_digits(judge: SVC, tmp_path: Path) -> None:
    run("python train_vae.py experiment=vae_digits", tmp_path)
    run(f"python sample.py stage=vae run=vae_digits n=500 out={tmp_path / 'grid.png'}", tmp_path)
    probability = judge.predict_proba(read(tmp_path / "grid"))
    sure = (probability.max(1) > 0.9).mean()
    print(f"read with probability over 0.9: {sure:.3f}")
    assert sure >= 0.7
    assert len(np.unique(probability.argmax(1))) == 10
