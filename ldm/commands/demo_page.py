"""The page that `make demo` leaves: images, scores, curves, timings, what to try next."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ldm.commands.compare import plot, read_runs
from ldm.evaluation.legal_report import ABOUT, show_worst
from ldm.evaluation.measures.image_set import to_bytes
from ldm.evaluation.measures.legal_scenes import Fitted
from ldm.evaluation.report import Report

NEXT = {
    "a caption of your own": "python sample.py run=emoji prompt='a cat above a rocket on a blue background' n=4",
    "the web page": "python app.py run=emoji",
    "more training, on the same first stage": (
        "python train_ldm.py data=emoji name=longer first_stage=emoji trainer.max_time=00:01:00:00"
    ),
    "what the model is worth, against real images": "python evaluate.py run=emoji",
    "your own images": "python train_vae.py data=folder data.root=photos.zip data.size=64 name=photos",
}  # fmt: skip
SHOWN = {"all, one object": "one object", "all, two objects": "two objects"}
FIRST = 40  # images in the grid


def write_page(
    out: Path,
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    covered: Mapping[str, float],
    images: Tensor,
    captions: Sequence[str],
    fitted: Fitted,
    timings: Mapping[str, float],
) -> Path:
    """Writes OUT/report.html, with the figures beside it; its path."""
    page = Report(out, "Both stages, on emoji")
    page.pictures("pictures", images[:FIRST], 8, "Captions that no training image had, in order and none left out.")
    page.rows(["image", "caption"], [[i + 1, caption] for i, caption in enumerate(captions[:8])])
    for title, rows in scores.items():
        page.heading(title.capitalize())
        names = list(next(iter(rows.values())))
        page.rows(
            ["", *[SHOWN.get(name, name) for name in names]], [[what, *row.values()] for what, row in rows.items()]
        )
    page.table(covered)
    page.say(ABOUT, "note")
    show_worst(page, to_bytes(images), fitted, captions)
    page.heading("Stage one: images beside their reconstructions")
    show_samples(page, "vae", out)
    page.heading("Losses")
    for stage, title in (("vae", "Stage one."), ("ldm", "Stage two.")):
        page.plot(f"losses-{stage}", plot(read_runs([f"runs/{stage}/emoji"])), title)
    page.heading("Time")
    page.table({what: f"{seconds:.0f} s" for what, seconds in timings.items()})
    page.say("A stage that was trained before took the time of looking it up.", "note")
    page.heading("What to try next")
    page.rows(["", ""], [[what, command] for what, command in NEXT.items()])
    page.save({"scores": scores, **covered, "seconds": timings})
    return out / "report.html"


def show_samples(page: Report, stage: str, out: Path) -> None:
    """The last samples that a run wrote."""
    files = sorted(Path(f"runs/{stage}/emoji/samples").glob("step-*.png"))
    if files:
        shutil.copyfile(files[-1], out / f"samples-{stage}.png")
        page.parts.append(f'<img src="samples-{stage}.png" width="640">')
