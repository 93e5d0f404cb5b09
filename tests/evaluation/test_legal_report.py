"""evaluate.py on emoji scenes: how near they are to legal ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ldm
from ldm.commands import evaluate as evaluation
from ldm.conditioning import Conditioner, Text
from ldm.conditioning.text import tokenizer
from ldm.data.sources.emoji import Emoji
from ldm.diffusion import Denoiser, Flow
from ldm.evaluation.legal_report import PLACES, generated_figures
from ldm.evaluation.measures.legal_scenes import CAP, scenes_of
from ldm.evaluation.report import HtmlReport
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, UNet

DATA = {"size": 16, "n": 40, "val_n": 16, "objects": ["cat", "dog", "fish", "apple"]}
DB = "nearest legal scene: median"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/vae/scenes and runs/ldm/scenes of random weights, as trained on small scenes by captions."""
    root = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    preprocess = Emoji(**DATA).tables(root / "cache" / "data")[0].preprocess
    vae = AutoencoderKL(3, 2, channels=8, multipliers=(1, 2))
    vae.preprocess = preprocess  # type: ignore[assignment]
    text = Text(tokenizer.train(["a cat on a red background"], 280), length=48, dim=8, depth=1, heads=2)
    network = UNet(2, channels=8, multipliers=(1,), context_dim=8, vector_dim=8, heads=2)
    sampling = {"steps": 2, "sampler": "euler", "guidance": 1.0}
    model = LatentDiffusion(vae, Denoiser(network, Flow()), Conditioner({"text": text}), preprocess, sampling)
    for stage, made in (("vae", vae), ("ldm", model)):
        ldm.save(made, root / stage / "scenes" / "model")
        (root / stage / "scenes" / "config.yaml").write_text(yaml.safe_dump({"data": {"class": "Emoji", **DATA}}))
    return root


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_runs_on_scenes_are_measured_against_legal_ones(config, trained: Path, stage: str, tmp_path: Path) -> None:
    places = {"runs_dir": str(trained), "cache_dir": str(trained / "cache"), "out": str(tmp_path)}
    found = evaluation.main(config(stage=stage, run="scenes", reference_n=16, n=8, **places))
    two = found[f"{DB}, two objects"]
    for value in (found[DB], two) if stage == "vae" else (found[DB]["mean"], two["mean"]):
        assert 0 < value < 20  # of random weights
    if stage == "ldm":
        assert len(found[DB]["each"]) == 2 and found[PLACES]["mean"] >= 0
    page = (tmp_path / "report.html").read_text()
    assert "beside the nearest legal scene" in page and DB in page


def test_real_scenes_reach_the_cap_and_cover_the_jitter(tmp_path: Path) -> None:
    emoji = Emoji(**DATA)
    _, val = emoji.tables(tmp_path / "cache")
    rows = np.arange(16)
    sets = [torch.from_numpy(emoji.compose(scenes_of(val, rows), seed)[0]) for seed in range(9)]
    report = HtmlReport(tmp_path / "report", "scenes")
    found = generated_figures(emoji, sets, conditions={"text": []}, table=val, rows=rows, report=report)
    assert found[DB]["mean"] == CAP and found["nearest legal scene: grain"]["mean"] == 0
    assert found[PLACES]["mean"] == pytest.approx(1, abs=0.2)
    assert (tmp_path / "report" / "worst.png").is_file()
    again = generated_figures(emoji, [sets[0]] * 2, conditions={"text": []}, table=val, rows=rows, report=report)
    assert again[PLACES]["mean"] == 0
    assert PLACES not in generated_figures(
        emoji, sets[:1], conditions={"text": []}, table=val, rows=rows, report=report
    )


def test_what_doesn_t_say_which_scene_it_is_isn_t_measured(tmp_path: Path) -> None:
    emoji = Emoji(**DATA)
    _, val = emoji.tables(tmp_path / "cache")
    report = HtmlReport(tmp_path / "report", "scenes")
    images = torch.from_numpy(np.array(val.images[:2]))
    for source, given in ((emoji, {}), (emoji, {"map": []}), (object(), {"text": []})):
        assert generated_figures(source, [images], conditions=given, table=val, rows=np.arange(2), report=report) == {}
