"""`score.py` on a tiny run: samples are written once, statistics read and written, what is missing is said first."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.commands import score
from ldm.common.errors import UserError
from ldm.config.compose import CONF
from ldm.data.storage.buckets import Buckets
from ldm.evaluation.published import sample_folder
from ldm.evaluation.published.embedders import Embedder
from ldm.evaluation.published.images import Images
from ldm.evaluation.published.statistics import read_statistics
from ldm.model.loading import load

CONFIG = CONF / "score.yaml"


@pytest.fixture
def options(runs: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that gives the shipped YAML with changes, with a network of means and corner pixels for Inception."""
    import yaml

    monkeypatch.setattr(score, "inception_file", lambda: CONFIG)
    monkeypatch.setattr(score, "inception", lambda path, resizing, device: simple(resizing))

    def make(**changes):
        defaults = yaml.safe_load(CONFIG.read_text())
        small = {"n": 12, "batch_size": 5, "device": "cpu", "run": "tiny", "runs_dir": str(runs)}
        return defaults | small | {"cache_dir": str(cache), "out": str(tmp_path / "out")} | changes

    return make


def simple(resizing: str = "clean", width: int = 3) -> Embedder:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.mean((2, 3))[:, :width], x[:, 0, :2, :2].flatten(1)

    protocol = {"features": "means", "weights": "none", "resizing": resizing}
    return Embedder(("FID", "sFID"), width, lambda x: x / 255, network, protocol)


def test_a_run_is_scored_and_its_samples_are_written_once(options, runs: Path, tmp_path: Path, monkeypatch) -> None:
    first = score.main(options())
    folder = Path(first["sampling"]["folder"])
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 12 and folder.parent == runs / "ldm" / "tiny" / "score"
    assert first == json.loads((tmp_path / "out" / "score.json").read_text())
    assert first["FID"] > 0 and first["sFID"] > 0
    about = first["protocols"]["FID"]
    assert about["weights"] == "none" and about["samples"] == 12 and about["reference"].endswith("training images")
    times = [path.stat().st_mtime_ns for path in files]
    monkeypatch.setattr(sample_folder.SampleFolder, "_generate", lambda *_: pytest.fail("generated again"))
    assert score.main(options())["FID"] == first["FID"]
    assert [path.stat().st_mtime_ns for path in files] == times
    page = (tmp_path / "out" / "score.html").read_text()
    assert "Protocol of FID" in page and "12 samples; papers take 50000" in page


def test_a_call_that_was_cut_off_is_continued_to_the_same_images(options) -> None:
    folder = Path(score.main(options(seed=3))["sampling"]["folder"])
    whole = {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.rglob("*.png")}
    for name in ("000002", "000009", "000010"):
        (folder / "000" / f"{name}.png").unlink()
    more = score.main(options(seed=3, n=14))
    assert Path(more["sampling"]["folder"]) == folder and more["samples"] == "14 samples"
    again = {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.rglob("*.png")}
    assert len(again) == 14 and max(np.abs(again[name] - image).max() for name, image in whole.items()) <= 1
    labels = [json.loads(line)["label"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(labels) == 14 and len(set(labels)) > 3


def test_other_settings_have_another_folder(options) -> None:
    usual, other = (Path(score.main(options(guidance=scale))["sampling"]["folder"]) for scale in (None, 1.0))
    assert usual != other and len(list(other.rglob("*.png"))) == 12


def test_statistics_are_written_and_serve_as_the_reference(options, tmp_path: Path) -> None:
    file = tmp_path / "train.npz"
    first = score.main(options(save_reference=str(file)))
    assert read_statistics(file).images > 1000
    second = score.main(options(reference=str(file)))
    assert second["FID"] == pytest.approx(first["FID"]) and second["sFID"] == pytest.approx(first["sFID"])
    assert "train.npz" in second["protocols"]["FID"]["reference"]
    with pytest.raises(UserError, match="made with other weights or resizing"):
        score.main(options(reference=str(file), resizing="tensorflow"))


def test_statistics_without_those_of_sfid_give_fid_alone(options, tmp_path: Path) -> None:
    np.savez(tmp_path / "pytorch_fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    found = score.main(options(reference=str(tmp_path / "pytorch_fid.npz")))
    assert "sFID" not in found and "no mu_s and sigma_s" in found["protocols"]["FID"]["not measured"]
    assert "doesn't say by which weights" in found["protocols"]["FID"]["reference"]


def test_images_of_another_tool_need_no_run(options, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images)
    (tmp_path / "real").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).resize((9, 8)).save(tmp_path / "real" / f"{i}.png")
    places = {"run": None, "samples": str(tmp_path / "samples.npz"), "reference": str(tmp_path / "real")}
    found = score.main(options(**places))
    assert 0 <= found["FID"] < 0.1 and found["protocols"]["FID"]["samples"] == 20
    assert "the distance measures the resolution too" in (tmp_path / "out" / "score.html").read_text()
    same = score.main(options(**places | {"reference": str(tmp_path / "samples.npz")}))
    assert same["FID"] == pytest.approx(0, abs=1e-9)


def test_a_reference_in_buckets_says_that_it_is_the_largest(digits) -> None:
    table = Buckets.of([digits[1], digits[1]], "two")
    found = score._reference({"reference": "val"}, (digits[0], table))
    assert found.what.endswith("those of the largest of 2 buckets")


def test_captions_of_a_folder_are_read_for_the_clip_score(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    lines = [json.dumps({"file_name": name, "text": f"of {name}"}) for name in ("b.png", "a.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert Images.of_path(tmp_path).texts == ["of a.png", "of b.png"]
    (tmp_path / "metadata.jsonl").write_text(lines[0])
    assert Images.of_path(tmp_path).texts is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "please give run=.*or samples="),
        ({"run": None, "samples": "x"}, "reference=train is a split of a run's data"),
        ({"samples": "x", "steps": 3}, "steps= is for a run's own samples"),
        ({"n": 4}, "at least 8 images"),
        ({"inception": "absent.pth"}, "inception=absent.pth: there is no such file"),
        ({"inception": "off"}, "nothing to measure: give inception="),
        ({"dinov2": "absent"}, "dinov2=absent: there is no such folder"),
        ({"clip": "absent"}, "clip=absent: there is no such folder"),
        ({"reference": "absent.npz"}, "can't be read as statistics"),
        ({"save_reference": "x.txt"}, "has to end in .npz"),
        ({"inception": "off", "dinov2": None, "save_reference": "x.npz"}, "nothing to measure"),
    ],
)
def test_mistakes_are_answered_before_anything_is_generated(
    options, monkeypatch: pytest.MonkeyPatch, changes: dict, words: str
) -> None:
    monkeypatch.setattr(score, "SampleFolder", lambda *_: pytest.fail("generated"))
    with pytest.raises(UserError, match=words):
        score.main(options(**changes))


def test_missing_weights_and_captions_are_said_before_anything_is_generated(
    options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(score, "SampleFolder", lambda *_: pytest.fail("generated"))
    monkeypatch.setattr(score, "ClipScore", lambda folder, device: object())
    with pytest.raises(UserError, match="this model isn't conditioned on text: leave clip= out"):
        score.main(options(clip="x"))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match="has statistics of 5 features, and FID has 3"):
        score.main(options(reference=str(tmp_path / "wide.npz")))
    monkeypatch.setattr(score, "inception_file", lambda: None)
    with pytest.raises(UserError, match="FID needs Inception's weights, and torch's cache has none: give inception="):
        score.main(options())


def test_too_little_space_is_said(runs: Path, digits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sample_folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    model = load(runs / "ldm" / "tiny")
    folder = sample_folder.SampleFolder(tmp_path, model, digits[1], np.arange(5), 0, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="12 samples may take up to .* GB free: make room, or lower n="):
        folder.fill(12, 4)
