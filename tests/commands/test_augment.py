"""`augment.py`: variants of a folder's images by an autoencoder, and the new folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.commands import cli
from ldm.common.errors import UserError
from ldm.data import Folder
from ldm.images import Preprocess
from tests.pretend.device import DEVICE, pretended


@pytest.fixture
def run(tmp_path) -> Path:
    torch.manual_seed(0)
    vae = ldm.AutoencoderKL(3, 2, channels=8, multipliers=[1], stem=4, shortcut=True)
    with torch.no_grad():
        vae.quant_conv.bias[2:] = -1.0
        vae.decoder.conv_out.weight.mul_(0.3)
    vae.preprocess = Preprocess(3, 16, 16)
    return ldm.save(vae.eval(), tmp_path / "vae")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder, rng = tmp_path / "my photos", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(folder / f"map-{i}.png")
        text = ["one way", "another"] if i == 1 else f"number {i}, 猫"
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(folder / f"edges-{i}.png")
        more = {"map": f"map-{i}.png", "control": f"edges-{i}.png"}
        rows.append({"file_name": f"{i}.png", "text": text, "label": ["pug", "corgi"][i % 2], **more})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def augment(run: Path, photos: Path, tmp_path: Path, *more: str) -> None:
    words = [f"run={run}", f"data.root={photos}", "data.val_share=0.2", f"runs_dir={tmp_path / 'runs'}"]
    cli.run("augment", [*words, f"out={tmp_path / 'more'}", *more])


def test_a_folder_of_variants_that_training_reads(run, photos, tmp_path):
    augment(run, photos, tmp_path, "n=3", "temperature=0.7")
    train, val = Folder(str(tmp_path / "more")).tables(tmp_path / "cache")
    assert (len(train), len(val)) == (24, 6)
    before = Folder(str(photos), val_share=0.2).tables(tmp_path / "cache")[0]
    assert train.classes == ("corgi", "pug")
    assert train.columns["text"] == [text for text in before.columns["text"] for _ in range(3)]
    assert train.columns["label"].tolist() == np.repeat(before.columns["label"], 3).tolist()
    for key in ("map", "control"):
        assert np.array_equal(train.columns[key], np.repeat(before.columns[key], 3, 0))
    variants = np.asarray(train.images).reshape(8, 3, 3, 16, 16)
    assert all(not np.array_equal(v[0], v[1]) for v in variants)


def test_originals_may_be_kept_and_temperature_zero_reconstructs(run, photos, tmp_path):
    augment(run, photos, tmp_path, "n=1", "temperature=0", "originals=true")
    train, _ = Folder(str(tmp_path / "more")).tables(tmp_path / "cache")
    before = Folder(str(photos), val_share=0.2).tables(tmp_path / "cache")[0]
    pairs = np.asarray(train.images).reshape(8, 2, 3, 16, 16)
    assert np.array_equal(pairs[:, 0], before.images)
    vae = ldm.load(run)
    images = before.batch(np.arange(8), ["image"])["image"]
    wanted = vae.preprocess.to_uint(vae.decode(vae.encode(images).mode()))
    assert np.abs(pairs[:, 1].astype(int) - wanted.numpy().astype(int)).max() <= 1


def test_variants_spread_with_the_temperature_and_not_with_the_batch(run):
    vae = ldm.load(run)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    spreads = [vae.augment(images, 8, t).std(1).mean().item() for t in (0.0, 0.5, 1.0)]
    assert spreads[0] == 0 < spreads[1] < spreads[2]
    whole = vae.augment(images, 2, seed=5)
    torch.testing.assert_close(vae.augment(images[2:], 2, seed=5, position=torch.tensor([2, 3])), whole[2:])
    for wrong in ({"images": list(images)}, {"n": 0}, {"temperature": -1.0}):
        with pytest.raises(UserError, match="augment takes|at least one variant"):
            vae.augment(**{"images": images} | wrong)


def test_a_classifier_is_trained_on_variants(run):
    variants = ldm.load(run).augment(torch.rand(2, 3, 16, 16) * 2 - 1, 2)
    classifier = torch.nn.Conv2d(3, 2, 16)
    classifier(variants.flatten(0, 1)).sum().backward()
    assert classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n=0"], "at least one variant"),
        (["run=nothing"], "nothing"),
        (["data.size=8", "data.channels=1"], "channels 3"),
    ],
)
def test_options_that_make_no_variants_are_refused(run, photos, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        augment(run, photos, tmp_path, *words)
    assert message in capsys.readouterr().err


def test_nothing_is_overwritten(run, photos, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine").touch()
    with pytest.raises(SystemExit, match="2"):
        augment(run, photos, tmp_path)
    assert "isn't empty" in capsys.readouterr().err


def test_variants_made_on_another_device_are_the_same(run, photos, tmp_path, monkeypatch):
    options = ("n=2", "temperature=0.5")
    augment(run, photos, tmp_path, *options, "device=cpu")
    (tmp_path / "more").rename(tmp_path / "cpu")
    with pretended(monkeypatch):
        augment(run, photos, tmp_path, *options, f"device={DEVICE}")
    (tmp_path / "more").rename(tmp_path / DEVICE)
    images = [sorted((tmp_path / device).glob("*/images/*")) for device in ("cpu", DEVICE)]
    assert len(images[0]) == 20 and [path.name for path in images[0]] == [path.name for path in images[1]]
    for a, b in zip(*images, strict=True):
        difference = np.asarray(Image.open(a)).astype(int) - np.asarray(Image.open(b))
        assert np.abs(difference).max() <= 1  # a value may be rounded the other way
