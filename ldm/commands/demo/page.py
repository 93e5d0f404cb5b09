"""The page that the demo writes: images, scores, curves, times, and what to try next."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm.commands.compare import plot, read_runs
from ldm.evaluation.legal_report import ABOUT, show_worst
from ldm.evaluation.measures.image_set import to_bytes
from ldm.evaluation.measures.legal_scenes import Fitted
from ldm.evaluation.report import HtmlReport

NEXT = {
    "a caption of your own": "python sample.py run=emoji prompt='a cat above a rocket on a blue background' n=4",
    "the web page": "python app.py run=emoji",
    "more training, on the same first stage": (
        "python train_ldm.py data=emoji name=longer first_stage=emoji trainer.max_time=00:01:00:00"
    ),
    "scores of the model, against real images": "python evaluate.py run=emoji",
    "your own images": "python train_vae.py data=folder data.root=photos.zip data.size=64 name=photos",
}  # fmt: skip
SHOWN = {"all, one object": "one object", "all, two objects": "two objects"}
FIRST = 40  # images in the grid


@dataclass(frozen=True)
class Results:
    """What the demo generated and measured."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]  # by table, row and column
    coverage: Mapping[str, float]
    images: Tensor  # (N, C, H, W) in [-1, 1]
    captions: Sequence[str]
    fitted: Fitted  # the images' nearest legal scenes
    seconds: Mapping[str, float]  # by what took them


def write_page(out: Path, results: Results) -> Path:
    """Writes OUT/report.html, with the figures beside it; returns its path."""
    page = HtmlReport(out, "Both stages, on emoji")
    shown = results.images[:FIRST]
    page.images("pictures", shown, 8, "Captions that no training image has: the first ones, all shown.")
    page.rows(["image", "caption"], [[i + 1, caption] for i, caption in enumerate(results.captions[:8])])
    for title, rows in results.scores.items():
        page.heading(title.capitalize())
        names = list(next(iter(rows.values())))
        head = ["", *[SHOWN.get(name, name) for name in names]]
        page.rows(head, [[what, *row.values()] for what, row in rows.items()])
    page.table(results.coverage)
    page.say(ABOUT, "note")
    show_worst(page, to_bytes(results.images), results.fitted, results.captions)
    page.heading("Stage one: images beside their reconstructions")
    _show_samples(page, "vae", out)
    page.heading("Losses")
    for stage, title in (("vae", "Stage one."), ("ldm", "Stage two.")):
        page.plot(f"losses-{stage}", plot(read_runs([f"runs/{stage}/emoji"])), title)
    page.heading("Time")
    page.table({what: f"{seconds:.0f} s" for what, seconds in results.seconds.items()})
    page.say("For a stage that had been trained before, this is only the time to check that.", "note")
    page.heading("What to try next")
    page.rows(["", ""], [[what, command] for what, command in NEXT.items()])
    page.save({"scores": results.scores, **results.coverage, "seconds": results.seconds})
    return out / "report.html"


def _show_samples(page: HtmlReport, stage: str, out: Path) -> None:
    """Shows the last samples that a run wrote."""
    files = sorted(Path(f"runs/{stage}/emoji/samples").glob("step-*.png"))
    if files:
        shutil.copyfile(files[-1], out / f"samples-{stage}.png")
        page.parts.append(f'<img src="samples-{stage}.png" width="640">')
