"""What a check of a data set found, as sentences with the images that they are about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldm.data.checking.collection import Collection
from ldm.data.checking.copies import Copies, find_copies
from ldm.data.checking.crops import Sizes
from ldm.data.checking.ids import RARE, UNBALANCED, MapIds, class_counts, map_ids
from ldm.data.checking.pixels import Pixels, measure
from ldm.data.checking.texts import Texts, texts_of
from ldm.data.reading.findings import examples, plural

_MOST_REPEATED = 0.5  # of the captions


@dataclass(frozen=True)
class Finding:
    """A sentence about the images `rows`, or about `groups` of images that belong together, under the name `key`."""

    key: str
    sentence: str
    rows: Sequence[int] = ()
    groups: Sequence[Sequence[int]] = ()


@dataclass
class Report:
    """Everything that is counted in a data set, and the findings: what the user may have to change."""

    collection: Collection
    pixels: Pixels
    copies: Copies
    sizes: Sizes | None
    texts: Texts | None
    classes: dict[str, tuple[int, int]]
    maps: MapIds | None
    findings: list[Finding] = field(default_factory=list)


def examine(collection: Collection) -> Report:
    """The report on all images of a collection."""
    pixels, frames, labels = measure(collection), collection.frames(), collection.column("label")
    captions, train = collection.column("text"), collection.train
    report = Report(
        collection=collection,
        pixels=pixels,
        copies=find_copies(pixels, collection.is_val),
        sizes=None if frames is None else Sizes.of(frames, train.preprocess),
        texts=None if captions is None else texts_of(list(captions)),
        classes={} if labels is None else class_counts(np.asarray(labels), collection.is_val, train.classes),
        maps=map_ids(collection.parts) if "map" in train.columns else None,
    )
    report.findings = [
        *_about_copies(report.copies, collection),
        *_about_pixels(pixels, collection),
        *(_about_sizes(report.sizes, collection) if report.sizes else ()),
        *(_about_texts(report.texts, collection) if report.texts else ()),
        *_about_classes(report.classes),
        *(_about_maps(report.maps) if report.maps else ()),
    ]
    return report


def _about(key: str, rows: Sequence[int] | np.ndarray, what: str, collection: Collection) -> Iterator[Finding]:
    """A finding about images, or none if there are no images."""
    if len(rows):
        found = [int(row) for row in rows]
        names = examples(collection.names(found[:4]))
        yield Finding(key, f"{plural(len(found), 'image')} {what} ({names})", found)


def _about_copies(copies: Copies, collection: Collection) -> Iterator[Finding]:
    def shown(groups: list[list[int]]) -> str:
        """The first groups of copies, each as the names of two of its images."""
        return examples([" = ".join(collection.names(group[:2])) for group in groups[:4]])

    if copies.mixed:
        n = sum(int(collection.is_val[group].sum()) for group in copies.mixed)
        images = "1 validation image is" if n == 1 else f"{n} validation images are"
        sentence = f"{images} nearly or exactly a training image ({shown(copies.mixed)}): there validation only "
        yield Finding("overlap", sentence + "measures memorization", groups=copies.mixed)
    if copies.exact:
        sentence = f"{plural(copies.surplus, 'exact copy').replace('copys', 'copies')} of other images"
        yield Finding("exact_copies", f"{sentence} ({shown(copies.exact)}): images that are repeated are "
            "memorized sooner",
                      groups=copies.exact)  # fmt: skip
    if copies.near:
        sentence = f"{plural(len(copies.near), 'group')} of images that look alike ({shown(copies.near)})"
        yield Finding("near_copies", f"{sentence}: keep one of each, unless that is intended", groups=copies.near)


def _about_pixels(pixels: Pixels, collection: Collection) -> Iterator[Finding]:
    yield from _about("uniform", pixels.uniform(), "of a single colour: remove them", collection)
    yield from _about(
        "blurred", pixels.blurred(), "blurred or smooth: remove them, unless that is intended", collection
    )


def _about_sizes(sizes: Sizes, collection: Collection) -> Iterator[Finding]:
    small = f"enlarged, up to {sizes.scale.max():.1f} times: remove them, or train at a smaller data.size"
    yield from _about("enlarged", sizes.enlarged(), small, collection)
    most = f"cropped by 30% or more, up to {100 * sizes.lost.max():.0f}%: data.buckets=true keeps aspects"
    yield from _about("cropped", sizes.cropped(), most, collection)
    change = f"stretched, up to {sizes.stretch.max():.1f} times: data.resize=cover keeps aspects"
    yield from _about("stretched", sizes.stretched(), change, collection)


def _about_texts(texts: Texts, collection: Collection) -> Iterator[Finding]:
    n = len(texts.lengths)
    yield from _about("no_caption", texts.missing, "without a caption, which makes them unconditional", collection)
    if texts.same is not None:
        yield Finding("same_caption", f"all captions are the same ({examples([texts.same])}): train without captions")
    elif n and texts.repeated >= _MOST_REPEATED * n:
        yield Finding("repeated_captions", f"{texts.repeated} of {n} captions are those of other images too")
    elif n > 1 and texts.shared:
        yield Finding(
            "shared_words", f"words in nearly all captions, which therefore have no effect: {examples(texts.shared, 8)}"
        )


def _about_classes(classes: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    counts = {name: train for name, (train, _) in classes.items()}
    if rare := [name for name, count in counts.items() if count < RARE]:
        names = examples([f"{name}: {counts[name]}" for name in rare])
        few = plural(len(rare), "class").replace("classs", "classes")
        yield Finding(
            "rare_classes", f"{few} with fewer than {RARE} training images ({names}): add images, or merge classes"
        )
    if counts and max(counts.values()) >= UNBALANCED * max(1, min(counts.values())):
        most, least = (choose(counts, key=lambda name: counts[name]) for choose in (max, min))
        sentence = f"classes are unbalanced: {counts[most]} training images of {most}, {counts[least]} of {least}"
        yield Finding("unbalanced_classes", f"{sentence}: add images of the small classes")


def _about_maps(maps: MapIds) -> Iterator[Finding]:
    if maps.are_many:
        sentence = (
            f"maps have {len(maps.pixels)} ids: are they colours, or lossy JPEGs? PNGs of ids are read as they are"
        )
        yield Finding("many_ids", sentence)
    elif maps.gaps:
        yield Finding("ids_missing", f"ids of maps that never occur: {examples([str(i) for i in maps.gaps], 8)}")


def figures(report: Report) -> dict[str, Any]:
    """The report's figures as plain data."""
    sizes, texts, maps = report.sizes, report.texts, report.maps
    found: dict[str, Any] = {
        "images": len(report.collection),
        "findings": [_plain(finding, report.collection) for finding in report.findings],
    }
    if sizes:
        found["sizes"] = sizes.common(1000)
        found["aspects"] = sizes.aspects()
        found["cropped_away"] = {"mean": float(sizes.lost.mean()), "most": float(sizes.lost.max())}
    if texts:
        found["captions"] = {
            "missing": len(texts.missing),
            "words": _quantiles(texts.lengths),
            "commonest": dict(texts.words.most_common(100)),
            "tags": dict(texts.tags.most_common(100)),
        }
    if report.classes:
        found["classes"] = {name: {"train": a, "val": b} for name, (a, b) in report.classes.items()}
    if maps:
        found["map_ids"] = {str(i): {"pixels": maps.pixels[i], "images": maps.images[i]} for i in maps.pixels}
    return found


def _plain(finding: Finding, collection: Collection) -> dict[str, Any]:
    about: dict[str, Any] = {"key": finding.key, "sentence": finding.sentence}
    if finding.rows:
        about["files"] = collection.names(finding.rows)
    if finding.groups:
        about["groups"] = [collection.names(group) for group in finding.groups]
    return about


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, median, high = np.quantile(values, [0, 0.5, 1])
    return {"least": float(low), "median": float(median), "most": float(high)}
