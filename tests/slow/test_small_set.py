"""experiment=small_set on sixty digits as a folder, cut short: check, both stages, and generating."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import ldm
from ldm.commands import cli

pytestmark = pytest.mark.slow


def test_a_small_set_is_checked_trained_and_generated_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits").mkdir()
    for i, image in enumerate(load_digits().images[:60]):
        Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16)).save(tmp_path / "digits" / f"{i}.png")
    words = [f"data.root={tmp_path / 'digits'}", "data.size=16", f"runs_dir={tmp_path / 'runs'}"]
    cli.run("check", [*words, "steps=0"])
    assert "ldm train-vae experiment=small_set data=folder" in capsys.readouterr().out
    short = ["logger=none", "samples.n=4", "trainer.max_steps=20", "trainer.accelerator=cpu", "batch_size=16"]
    cli.run("train_vae", ["experiment=small_set", *words, *short, "name=s"])
    cli.run("train_ldm", ["experiment=small_set", *words, *short, "first_stage=s", "name=s"])
    assert "57 images in 16 variants" in capsys.readouterr().out
    model = ldm.load(tmp_path / "runs" / "ldm" / "s" / "model")
    assert list(model.conditioner.parts) == ["augment"]
    first, second = (model.generate(n=2, steps=4, seed=1) for _ in range(2))
    assert first[0].size == (16, 16) and first[0].tobytes() == second[0].tobytes()
