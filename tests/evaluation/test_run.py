"""`evaluate.py` on tiny runs: both stages, folders of images, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ldm
from ldm.commands import evaluate as evaluation
from ldm.common.errors import UserError
from ldm.data.storage.table import Table
from ldm.networks import AutoencoderKL


def test_stage_two_is_measured_with_its_spread(config, tmp_path: Path) -> None:
    found = evaluation.main(config(out=str(tmp_path), curve={"guidance": [1, 2], "steps": [2, 4], "n": 8}))
    assert found == json.loads((tmp_path / "evaluation.json").read_text())
    distance = found["FD on random convolutions"]
    assert len(distance["each"]) == 2 and distance["std"] > 0
    assert found["validation loss"] > 0 and found["pictures a seed"] == 12 and found["seeds"] == [0, 1]
    assert found["as many training images"]["FD on random convolutions"] < distance["mean"]
    assert found["label of held-out real images"] > 0.3
    assert 0 <= found["memorisation rate"] <= 1
    page = (tmp_path / "report.html").read_text()
    for shown_image in tmp_path.glob("*.png"):
        assert f'src="{shown_image.name}"' in page
    assert {"samples.png", "nearest.png", "curve_guidance.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "FID" not in page and "RANDOM WEIGHTS" in page


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_curves_count_what_an_image_costs(config, tmp_path: Path, precision: str) -> None:
    curve = {"guidance": [1, 2], "steps": [3], "n": 8}
    found = evaluation.main(config(out=str(tmp_path), curve=curve, batch_size=5, precision=precision))
    assert found.get("precision", "auto") == precision
    plain, guided = found["curve over guidance"]
    assert (plain["network evaluations"], plain["guided steps"]) == (2, 0)
    assert (guided["network evaluations"], guided["guided steps"]) == (4, 2)
    assert found["curve over steps"][0]["network evaluations"] == 6
    assert (found["network evaluations per image"], found["guided steps"]) == (4, 2)


def test_stage_one_is_measured_and_judged(config, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = evaluation.main(config(stage="vae", out=str(tmp_path)))
    assert found["PSNR in dB"] < 20 and len(found["KL of each latent channel in nats"]) == 2
    assert found["verdict"].startswith("fail")  # random weights
    assert capsys.readouterr().out.splitlines()[-1] == f"verdict: {found['verdict']}"
    assert found["reconstruction FD on random convolutions"] > 0 and -1 <= found["SSIM"] <= 1
    assert found["LPIPS"] == "not asked for"
    assert (tmp_path / "reconstructions.png").exists() and "verdict" in (tmp_path / "report.html").read_text()


@pytest.fixture
def blown_up(runs: Path, tmp_path: Path) -> Path:
    """A copy of the tiny autoencoder whose latents are 200 times as large, and decoded as before."""
    folder = tmp_path / "runs" / "vae" / "large"
    vae = ldm.load(runs / "vae/tiny")
    assert isinstance(vae, AutoencoderKL)
    with torch.no_grad():
        vae.quant_conv.weight[: vae.latent_channels] *= 200
        vae.quant_conv.bias[: vae.latent_channels] *= 200  # type: ignore[index]
        vae.post_quant_conv.weight /= 200
    ldm.save(vae, folder / "model")
    shutil.copy(runs / "vae/tiny/config.yaml", folder)
    return folder


def test_latents_that_blew_up_are_named(config, blown_up: Path, tmp_path: Path) -> None:
    same, large = (
        evaluation.main(config(stage="vae", run=str(run), out=str(tmp_path / "out"))) for run in ("tiny", blown_up)
    )
    assert "unbounded latents" in large["verdict"] and "unbounded latents" not in same["verdict"]
    assert large["PSNR in dB"] == pytest.approx(same["PSNR in dB"], abs=0.01)


def write(table: Table, folder: Path, n: int) -> Path:
    folder.mkdir()
    for i, image in enumerate(table.images[:n]):
        Image.fromarray(np.asarray(image[0])).save(folder / f"{i:04d}.png")
    return folder


def test_a_folder_is_scored_against_the_run_s_data(config, digits: tuple[Table, Table], tmp_path: Path) -> None:
    folder = write(digits[0], tmp_path / "pictures", 60)
    found = evaluation.main(config(samples=str(folder), out=str(tmp_path / "out")))
    assert found["pictures"] == 60 and found["reference images"] == 60
    assert found["memorisation rate"] == 1  # they are training images
    assert found["FD on random convolutions of each half"]["std"] is not None


def test_two_folders_need_no_run(config, digits: tuple[Table, Table], tmp_path: Path) -> None:
    a, b = (write(table, tmp_path / name, 40) for table, name in zip(digits, "ab", strict=True))
    found = evaluation.main(config(run=None, samples=str(a), reference=str(a), out=str(tmp_path / "out")))
    assert found["FD on random convolutions"] < 1e-3
    other = evaluation.main(config(run=None, samples=str(a), reference=str(b), out=str(tmp_path / "out"), size=8))
    assert other["FD on random convolutions"] > 0.01 and other["prepared"]["height"] == 8


def test_real_validation_images_against_themselves_are_at_zero(config, tmp_path: Path) -> None:
    found = evaluation.main(config(samples="val", out=str(tmp_path)))
    assert found["FD on random convolutions"] < 1e-3 and found["precision (k = 3)"] == 1


def test_a_few_validation_images_are_no_reference(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def few(path, config, load=evaluation.data_of):
        train, val = load(path, config)
        columns = {name: column[:3] for name, column in val.columns.items()}
        return train, replace(val, images=val.images[:3], columns=columns, names=val.names[:3], key="few")

    monkeypatch.setattr(evaluation, "data_of", few)
    found = evaluation.main(config(out=str(tmp_path / "ldm")))
    assert found["reference"].endswith("training images") and found["reference images"] == 60
    assert "fewer than 8 images: compared with training images" in capsys.readouterr().out
    assert evaluation.main(config(stage="vae", out=str(tmp_path / "vae")))["PSNR in dB"] < 20
    with pytest.raises(UserError, match="validation images are 3 images.*reference=train"):
        evaluation.main(config(reference="val", out=str(tmp_path)))


def test_a_sweep_s_jobs_report_apart(config, tmp_path: Path) -> None:
    evaluation.main(config(samples="val", out=str(tmp_path)), "guidance-2")
    assert (tmp_path / "guidance-2" / "evaluation.json").exists()


def test_another_run_s_data_prepared_differently_are_refused(config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepared differently.*height 16 against 8"):
        evaluation.main(config(reference="other", out=str(tmp_path)))


def test_a_model_of_other_preprocessing_than_its_data_is_refused(config, runs: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "copy").mkdir()
    shutil.copytree(runs / "ldm/tiny/model", copy / "model")
    data = {"data": {"class": "Digits", "size": 12}}
    (copy / "config.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match="prepared differently"):
        evaluation.main(config(run=str(copy), out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "give run="),
        ({"run": None, "samples": "x"}, "give run="),
        ({"stage": "ldn"}, "Did you mean 'ldm'"),
        ({"samples": "val", "stage": "vae"}, "leave out stage=vae"),
        ({"n": 4}, "at least 8 images"),
        ({"features": "inceptoin"}, "no such file"),
        ({"lpips": "alx", "stage": "vae"}, "Did you mean 'alex'"),
        ({"samples": "nowhere"}, "isn't a folder"),
        ({"reference": "imagenet.npz"}, "score.py compares with statistics"),
        ({"run": "tinny"}, "Did you mean 'tiny'"),
    ],
)
def test_mistakes_are_answered_in_words(config, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluation.main(config(out=str(tmp_path)) | changes)
