"""The report of `score.py`: the scores, the protocol of each, and the first samples."""

from collections.abc import Mapping
from typing import Any

import torch

import ldm
from ldm.evaluation.published.images import Images
from ldm.evaluation.published.statistics import Statistics
from ldm.evaluation.report import HtmlReport, plain, shown

USUAL = 50_000  # samples of a published FID
SHOWN = 64
_HIDDEN = ("protocols", "sampling", "versions")  # in the table and in what is printed
Reference = Images | Statistics


def write_report(
    figures: dict[str, Any], samples: Images, reference: Reference, *, report: HtmlReport, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Saves the report and prints the scores, with what keeps them from being comparable to a paper's."""
    figures |= {"samples": samples.what, "sampling": dict(samples.about)}
    figures["versions"] = {"ldm": ldm.__version__, "torch": torch.__version__}
    report.heading("Scores")
    report.table({key: value for key, value in figures.items() if key not in _HIDDEN})
    notes = _notes(samples, reference)
    for note in notes:
        report.say(note, "note")
    for name, protocol in figures["protocols"].items():
        report.heading(f"Protocol of {name}")
        report.table(protocol)
    if samples.about:
        report.heading("How the samples were generated")
        report.table(samples.about)
    first = samples.read(0, min(SHOWN, samples.count))
    if len({image.shape for image in first}) == 1:
        report.images("samples", torch.stack(list(first)).float() / 127.5 - 1, 16, "The first samples, unpicked.")
    report.save(figures, "score.html", "score.json")
    for name, value in figures.items():
        if name not in _HIDDEN:
            print(f"{name}: {shown(value)}")
    print("\n".join([*notes, f"report: {report.folder / 'score.html'}"]), flush=True)
    return plain(figures)


def _notes(samples: Images, reference: Reference) -> list[str]:
    """What readers of the figures have to know."""
    notes = []
    if samples.count != USUAL:
        notes.append(
            f"note: {samples.count} samples; papers take {USUAL}. A Frechet distance falls as the number grows: "
            "compare at equal numbers only."
        )
    if isinstance(reference, Images) and (a := _size(samples)) != (b := _size(reference)):
        notes.append(f"note: samples are {a}, and the reference {b}: the distance measures the resolution too.")
    return notes


def _size(images: Images) -> str:
    """Height and width of the first image."""
    height, width = images.read(0, 1)[0].shape[1:]
    return f"{height}x{width}"
