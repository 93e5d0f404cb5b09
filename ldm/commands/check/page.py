"""The page of `ldm check`: findings with their images, the images as they are trained on, and everything counted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.checking.collection import Collection
from ldm.data.checking.crops import Sizes
from ldm.data.checking.findings import Finding, Report
from ldm.data.checking.prepare import Prepared
from ldm.data.reading.paths import evenly_spaced
from ldm.evaluation.report import HtmlReport
from ldm.images import open_image

_SHOWN, _COLUMNS = 48, 12
_PER_FINDING, _PER_GROUP = 16, 4
_SIDE = 128  # pixels of a thumbnail
_NAMES = 200  # of a list of files
_DIMMED = 0.35  # what cropping takes away is shown this strong, on white


def write_page(
    out: Path,
    found: Prepared,
    report: Report,
    advice: Sequence[str],
    numbers: Mapping[str, Any],
    names: tuple[str, str],
) -> None:
    """Writes the page and the JSON, under these names, into the folder `out`."""
    page = HtmlReport(out, f"Data check: {found.facts.source}", embeds=True)
    for i, line in enumerate(found.facts.lines()):
        page.say(line, "" if i == 0 else "note")
    page.heading("What to do")
    for line in advice:
        page.say(line, "fail" if line.startswith("training stops") else "")
    page.heading("Findings")
    if not report.findings:
        page.say("Nothing suspicious was found.", "pass")
    for finding in report.findings:
        _show_finding(page, finding, report.collection)
    _show_samples(page, report.collection)
    _show_sizes(page, found, report)
    _show_columns(page, report)
    _show_files(page, found)
    page.save(numbers, *names)


def _show_finding(page: HtmlReport, finding: Finding, collection: Collection) -> None:
    page.say(finding.sentence, "fail")
    if finding.rows:
        rows = list(finding.rows[:_PER_FINDING])
        page.images(finding.key, thumbnails(collection, rows), _COLUMNS // 2 + 2, ", ".join(collection.names(rows)))
    if finding.groups:
        groups = [list(group[:_PER_GROUP]) for group in finding.groups[:_PER_FINDING]]
        images = [thumbnails(collection, group) for group in groups]
        blank = torch.ones(1, *_common_shape(images))
        lines = [_padded_row(_fitted(group, blank.shape[1:]), blank) for group in images]
        labels = "; ".join(" = ".join(collection.names(group)) for group in groups)
        page.images(finding.key, torch.cat(lines), _PER_GROUP, f"one group in each row: {labels}")


def _padded_row(images: Tensor, blank: Tensor) -> Tensor:
    """Images (n, C, H, W), and blank ones up to a whole row."""
    return torch.cat([images, blank.expand(_PER_GROUP - len(images), -1, -1, -1)])


def _common_shape(images: Sequence[Tensor]) -> tuple[int, int, int]:
    return images[0].shape[1], max(i.shape[2] for i in images), max(i.shape[3] for i in images)


def _show_samples(page: HtmlReport, collection: Collection) -> None:
    rows = evenly_spaced(range(len(collection)), _SHOWN)
    page.heading("As training sees them")
    page.images("samples", thumbnails(collection, rows), _COLUMNS, "evenly spaced over all images")


def _show_sizes(page: HtmlReport, found: Prepared, report: Report) -> None:
    if not report.sizes:
        return
    page.heading("Sizes (height x width)")
    page.table(report.sizes.common())
    page.table(report.sizes.aspects())
    lost, scale = report.sizes.lost, report.sizes.scale
    page.say(f"cropped away: {100 * lost.mean():.0f}% on average, at most {100 * lost.max():.0f}%", "note")
    page.say(f"scaled by {scale.min():.2f} to {scale.max():.2f}, {np.median(scale):.2f} in the middle", "note")
    if lost.max() > 0.01 and hasattr(found.source, "content"):
        rows = np.argsort(-lost, kind="stable")[:_PER_FINDING].tolist()
        shown = {row: image for row in rows if (image := _with_crop(found, report, row)) is not None}
        if shown:
            names = ", ".join(report.collection.names(list(shown)))
            caption = f"these lose the most; the pale part is cropped away: {names}"
            page.images("crops", _together(list(shown.values())), 8, caption)


def _with_crop(found: Prepared, report: Report, row: int) -> Tensor | None:
    """The whole image (3, H, W), pale where it is cropped away; None if it can't be shown."""
    try:
        image = open_image(found.source.content(report.collection.name(row)))
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1  # type: ignore[union-attr]
    except Exception:  # whatever it is, the page is whole without this image
        return None
    small = _thumbnail(pixels)
    assert isinstance(report.sizes, Sizes)
    height, width = small.shape[1:]
    whole = report.sizes.to[row] / (
        report.sizes.scale[row] * np.array([report.sizes.height[row], report.sizes.width[row]])
    )
    h, w = round(min(1, whole[0]) * height), round(min(1, whole[1]) * width)
    top, left = (height - h) // 2, (width - w) // 2
    shown = 1 - _DIMMED * (1 - small)
    shown[:, top : top + h, left : left + w] = small[:, top : top + h, left : left + w]
    return shown


def _show_columns(page: HtmlReport, report: Report) -> None:
    if texts := report.texts:
        page.heading("Captions")
        if len(texts.lengths):
            low, middle, high = np.quantile(texts.lengths, [0, 0.5, 1])
            page.say(f"{len(texts.lengths)} captions of {low:.0f} to {high:.0f} words, {middle:.0f} in the middle")
        page.say("number of captions with each of the commonest " + ("tags" if texts.tags else "words"), "note")
        page.table(dict((texts.tags or texts.words).most_common(30)))
    if report.classes:
        page.heading("Classes")
        counts = [(name, a, b) for name, (a, b) in report.classes.items()]
        page.rows(("class", "training", "validation"), counts[:_NAMES])
    if maps := report.maps:
        page.heading("Ids of maps")
        shares = [(str(i), f"{100 * maps.pixels[i]:.2f}%", str(maps.images[i])) for i in maps.pixels]
        page.rows(("id", "of all pixels", "images"), shares)


def _show_files(page: HtmlReport, found: Prepared) -> None:
    """Files that can't be used, aren't wanted or aren't read, by name."""
    facts = found.facts
    for title, files in (("Can't be used", facts.bad), ("Left out", facts.left_out)):
        if files:
            page.heading(title)
            page.rows(("file", "why"), list(files.items())[:_NAMES])
    if facts.unread:
        page.heading("Not read")
        page.rows(("why", "files"), [(why, ", ".join(names[:20])) for why, names in facts.unread.items()])


def thumbnails(collection: Collection, rows: Sequence[int]) -> Tensor:
    """Images (n, 3, H, W) of at most 128 pixels a side, those of other shapes on white."""
    return _together([_thumbnail(collection.image(row)) for row in rows])


def _thumbnail(image: Tensor) -> Tensor:
    """An image (C, H, W) in [-1, 1] in colour, at most 128 pixels a side."""
    shown = image[: 1 if image.shape[0] < 3 else 3].float().expand(3, -1, -1)
    factor = _SIDE / max(shown.shape[1:])
    if factor >= 1:
        return shown
    size = [max(1, round(side * factor)) for side in shown.shape[1:]]
    return F.interpolate(shown[None], size, mode="bilinear", antialias=True)[0]


def _together(images: Sequence[Tensor]) -> Tensor:
    height, width = max(i.shape[1] for i in images), max(i.shape[2] for i in images)
    return torch.cat([_fitted(image[None], (3, height, width)) for image in images])


def _fitted(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (n, 3, h, w) in the middle of a white field of (3, H, W)."""
    down, right = shape[1] - images.shape[2], shape[2] - images.shape[3]
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0)
