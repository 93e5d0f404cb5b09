"""Folders as users have them, through both stages by the entry scripts' own way."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm
from ldm.commands import cli

TINY = "trainer.max_steps=3 batch_size=4 samples.n=2 logger=none"
TINY_VAE = f"{TINY} vae.channels=16 vae.multipliers=[1,2]"
TINY_LDM = f"{TINY} network=unet network.channels=16 network.multipliers=[1] network.heads=2"
TINY_LDM += " diffusion.sampling.steps=2"


def run(script: str, words: str, root: Path, data: Path, *more: str) -> None:
    cli.run(script, [*words.split(), "data=folder", f"data.root={data}", f"runs_dir={root / 'runs'}", *more])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Twelve images of five channels and 16 bits."""
    folder = tmp_path / "satellite"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        np.save(folder / f"{i}.npy", rng.integers(0, 65536, (16, 16, 5), dtype=np.uint16))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixteen JPEGs of 256x256: some CMYK, some turned by EXIF, all captioned in metadata.jsonl."""
    folder = tmp_path / "my photos (1)"
    folder.mkdir()
    rows = []
    for i in range(16):
        image = Image.fromarray(noise(256, 256, 3)).resize((256, 256 if i % 2 else 192))
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 4 == 0 else 1  # orientation
        image.convert("CMYK" if i % 3 == 0 else "RGB").save(folder / f"{i}.jpg", exif=exif)
        rows.append({"file_name": f"{i}.jpg", "text": f"noise, it's number {i}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_five_channels_of_16_bits_train_both_stages(arrays: Path, tmp_path: Path) -> None:
    run("train_vae", TINY_VAE, tmp_path, arrays, "data.val_share=0.25")
    run("train_ldm", TINY_LDM, tmp_path, arrays, "data.val_share=0.25", "first_stage=satellite")
    model = ldm.load(tmp_path / "runs/ldm/satellite")
    images = model(n=2, steps=2, output="pt")
    assert images.shape == (2, 5, 16, 16)
    assert model(n=1, steps=2, output="np").dtype == np.uint16


def test_captioned_photos_train_both_stages(photos: Path, tmp_path: Path) -> None:
    size = ("data.size=32", "data.val_share=0.25", "name=photos")
    run("train_vae", TINY_VAE, tmp_path, photos, *size)
    run("train_ldm", TINY_LDM, tmp_path, photos, *size, "first_stage=photos")
    model = ldm.load(tmp_path / "runs/ldm/photos")
    assert model("noise, it's number 3", steps=2)[0].size == (32, 32)


@pytest.mark.slow
def test_kl_f8_takes_two_steps_at_256(photos: Path, tmp_path: Path) -> None:
    words = "vae=kl_f8 trainer.max_steps=2 batch_size=1 samples.n=1 trainer.limit_val_batches=1 logger=none"
    run("train_vae", words, tmp_path, photos, "data.size=256", "data.val_share=0.25", "name=f8")
    vae = ldm.load(tmp_path / "runs/vae/f8")
    assert vae.factor == 8 and sum(p.numel() for p in vae.parameters()) > 80e6


def test_a_size_that_does_not_divide_is_refused_before_work(photos: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("train_vae", TINY_VAE, tmp_path, photos, "data.size=30", "name=odd", "vae.stem=4")
    assert "30x30 isn't divisible by the autoencoder's factor 8" in capsys.readouterr().err


def test_a_stage_one_of_other_channels_is_refused(arrays: Path, photos: Path, tmp_path: Path, capsys) -> None:
    run("train_vae", TINY_VAE, tmp_path, arrays, "data.val_share=0.25")
    with pytest.raises(SystemExit, match="2"):
        run("train_ldm", TINY_LDM, tmp_path, photos, "data.size=32", "first_stage=satellite")
    assert "takes 5 channels, the data has 3" in capsys.readouterr().err


def test_a_missing_stage_one_is_named_before_work(photos: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("train_ldm", TINY_LDM, tmp_path, photos, "data.size=32")
    assert "run train_vae.py first" in capsys.readouterr().err
