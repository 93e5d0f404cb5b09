"""What `ldm demo` measures and shows, without the training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.commands.demo import page as demo_page
from ldm.commands.demo import run as demo
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes
from ldm.evaluation.legal_report import PLACES
from ldm.evaluation.measures.image_set import from_bytes
from ldm.evaluation.measures.legal_scenes import CAP, by_objects, fit
from ldm.evaluation.report import new_figure
from ldm.networks import AutoencoderKL

EMOJI = Emoji(objects=("cat", "apple", "rocket", "fish"))
COLUMNS, CAPTIONS = EMOJI.held_out_captions(12, 8)
SCENES = Scenes(**COLUMNS)


class Art:
    """A model that generates the art itself: a caption's images follow each other, as `LatentDiffusion` gives them."""

    def __init__(self, same: bool = False):
        self.same = same

    def __call__(self, captions: list[str], n: int = 1, seed: int = 0, **options: Any) -> torch.Tensor:
        scenes = SCENES[np.repeat([CAPTIONS.index(caption) for caption in captions], n)]
        middles = EMOJI.placing.middles(scenes)
        images, _ = EMOJI.compose_at(scenes, middles) if self.same else EMOJI.compose(scenes, seed)
        return from_bytes(torch.from_numpy(images))


def test_coverage_is_that_of_each_caption() -> None:
    assert demo.coverage(EMOJI, Art(), SCENES, CAPTIONS) == pytest.approx(1, abs=0.25)  # type: ignore[arg-type]
    assert demo.coverage(EMOJI, Art(same=True), SCENES, CAPTIONS) == 0  # type: ignore[arg-type]


def test_real_scenes_score_above_their_reconstructions() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(3, 2, channels=8, multipliers=(1, 2)).eval()
    rows = demo.near_stage_one(EMOJI, vae, SCENES)
    real, mean, sampled = (row["median"] for row in rows.values())
    assert real == CAP > 20 > mean and mean != sampled


def test_the_page_shows_the_worst_beside_the_nearest_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_page, "read_runs", list)
    monkeypatch.setattr(demo_page, "plot", lambda runs: new_figure())
    images = Art()(CAPTIONS)
    images[7] = images[7].roll(5, 2)
    fitted = fit(EMOJI, demo.to_bytes(images), SCENES)
    scores = {demo.NEAR: demo.named("generated", by_objects(fitted)), demo.READ: {"generated": {"all": 0.5}}}
    results = demo_page.Results(
        scores=scores, coverage={PLACES: 0.9}, images=images, captions=CAPTIONS, fitted=fitted, seconds={"in all": 1.0}
    )
    demo_page.write_page(tmp_path / "out", results)
    page = (tmp_path / "out" / "report.html").read_text()
    first = page.index("of the worst, in order")
    assert f"{fitted.psnr[7]:.1f} dB</td><td>{CAPTIONS[7]}" in page[first : first + 200]
    assert '<img src="worst.png"' in page and PLACES in page
    demo.show(scores, {PLACES: 0.9}, 1.0)
    printed = capsys.readouterr().out
    assert "generated, one object" in printed and f"{PLACES}: 0.90" in printed
    assert printed.index("nearest legal scene") < printed.index("read correctly")
