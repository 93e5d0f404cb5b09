"""The part of a report that compares images of emoji scenes with the nearest legal scenes."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.data.sources.emoji import Emoji
from ldm.data.storage.table import Table
from ldm.evaluation.measures.image_set import from_bytes
from ldm.evaluation.measures.legal_scenes import Fitted, by_objects, fit, scenes_of, variance_of_places
from ldm.evaluation.report import HtmlReport
from ldm.evaluation.scoring import over_seeds

TELLING = {"text", "low_res"}  # conditions that determine the scene; a map leaves the background open
PLACES = "variance of places, relative to the variance in the data"
ABOUT = (
    "The nearest legal scene has the caption's objects on its background, at the possible place that is nearest in "
    "pixels. PSNR is in dB; one image in twenty is below the worst 5 %; grain is the standard deviation of "
    "the difference on the background, on a scale of 255."
)
WORST = 8


def generated_figures(
    source: object,
    sets: Sequence[Tensor],
    *,
    conditions: Collection[str],
    table: Table,
    rows: np.ndarray,
    report: HtmlReport,
) -> dict[str, dict]:
    """Figures of generated images: `sets` has (N, 3, H, W) uint8 for each seed, for the captions of `table`'s `rows`.

    {} if the data aren't `Emoji`, or if none of the names of `conditions` determines the scene.
    """
    if not (isinstance(source, Emoji) and TELLING & set(conditions)):
        return {}
    scenes = scenes_of(table, rows)
    fitted = [fit(source, images, scenes) for images in sets]
    figures = over_seeds([named_figures(one) for one in fitted])
    if len(sets) > 1:
        places = np.stack([one.places for one in fitted])
        figures[PLACES] = {"mean": variance_of_places(source, places, scenes), "std": None}
    _show(report, figures, sets[0], fitted[0])
    return figures


def reconstructed_figures(
    source: object, images: Tensor, *, table: Table, rows: np.ndarray, report: HtmlReport
) -> dict[str, float]:
    """The figures of `generated_figures`, for reconstructions (N, 3, H, W) uint8 of `table`'s rows (N,)."""
    if not isinstance(source, Emoji):
        return {}
    fitted = fit(source, images, scenes_of(table, rows))
    figures = named_figures(fitted)
    _show(report, figures, images, fitted)
    return figures


def named_figures(fitted: Fitted) -> dict[str, float]:
    """The figures of all groups by name, such as "nearest legal scene: above 20 dB, one object"."""
    named = {}
    for group, figures in by_objects(fitted).items():
        suffix = "" if group == "all" else f", {group}"
        for name, value in figures.items():
            named[f"nearest legal scene: {name}{suffix}"] = value
    return named


def _show(report: HtmlReport, figures: dict, images: Tensor, fitted: Fitted) -> None:
    report.heading("Nearest legal scenes")
    report.table(figures)
    report.say(ABOUT, "note")
    show_worst(report, images, fitted)


def show_worst(report: HtmlReport, images: Tensor, fitted: Fitted, captions: Sequence[str] = ()) -> None:
    """Shows the worst eight of the images (N, 3, H, W) uint8, each beside its nearest legal scene."""
    rows = fitted.worst(WORST)
    pairs = torch.stack([images.cpu()[rows], torch.from_numpy(fitted.nearest[rows])], 1).flatten(0, 1)
    report.images("worst", from_bytes(pairs), 8, "The worst eight, each beside the nearest legal scene.")
    if captions:
        table = [[f"{fitted.psnr[row]:.1f} dB", captions[row]] for row in rows]
        report.rows(["of the worst, in order", "caption"], table)
