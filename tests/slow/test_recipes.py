"""The recipes for photographs, pixel art and scans, each on a small real set and cut short: both stages, and images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import ldm
from ldm.commands import cli

pytestmark = pytest.mark.slow


def photographs(folder: Path) -> None:
    rng, photos = np.random.default_rng(0), load_sample_images().images
    for i in range(40):
        x, y = rng.integers(0, 500), rng.integers(0, 300)
        Image.fromarray(photos[i % 2][y : y + 128, x : x + 128]).save(folder / f"{i}.png")


def sprites(folder: Path) -> None:
    for i, image in enumerate(load_digits().images[:40]):
        Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16), Image.Resampling.NEAREST).save(
            folder / f"{i}.png"
        )


def scans(folder: Path) -> None:
    for i, image in enumerate(load_digits().images[:40]):
        Image.fromarray((image * 4095).astype(np.uint16)).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("recipe", "write", "size"),
    [("photos", photographs, 32), ("pixel_art", sprites, None), ("scans", scans, 16)],
)
def test_a_recipe_trains_both_stages(
    recipe: str, write: Callable[[Path], None], size: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images")
    words = [f"experiment={recipe}", f"data.root={tmp_path / 'images'}", f"runs_dir={tmp_path / 'runs'}"]
    words += ["logger=none", "samples.n=2", "trainer.accelerator=cpu", "trainer.max_time=null", "trainer.max_steps=6"]
    words += ["batch_size=4", "name=r", *([f"data.size={size}"] if size else [])]
    cli.run("train_vae", words)
    said = capsys.readouterr().out
    cli.run("train_ldm", [*words, "first_stage=r"])
    model = ldm.load(tmp_path / "runs" / "ldm" / "r" / "model")
    assert isinstance(model, ldm.LatentDiffusion)
    images = model.generate(n=2, steps=2, output="pt")
    side, preprocess = size or 16, model.preprocess
    if recipe == "photos":
        assert (model.first_stage.factor, model.first_stage.latent_channels) == (8, 16)
        assert "loss: without LPIPS and critic" in said or "loss: LPIPS with vgg" in said
    assert images.shape == (2, preprocess.channels, side, side)
    assert preprocess.bits == (16 if recipe == "scans" else 8)


def test_pixel_art_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sprites(tmp_path)
    words = [f"data.root={tmp_path}", f"runs_dir={tmp_path / 'runs'}", "data.size=32", "logger=none"]
    with pytest.raises(SystemExit):
        cli.run("train_vae", ["experiment=pixel_art", *words])
    assert "is 16x16 where 32x32 is wanted (resize=none)" in capsys.readouterr().err
