"""One image of a data set with its caption, label and files, and the names that columns go by."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural

COLUMNS = ("text", "label", "map", "mask", "control")
PATHS = ("map", "mask", "control")  # columns that name files
# Other names for our columns. The first that holds something is read where a column of our own name doesn't.
USUAL = {
    "text": ("text", "caption", "captions", "prompt", "description", "txt"),
    "label": ("label", "labels", "class", "cls", "category"),
    "map": ("map", "label_map", "segmentation", "segmentation_map", "seg_map"),
    "mask": ("mask", "mask_image", "inpaint_mask"),
    "control": ("control", "conditioning_image", "control_image", "conditioning", "condition_image", "cond_image"),
}
Text = str | list[str] | None


@dataclass
class Sample:
    """One image and what belongs to it. Paths are inside the store. `caption` is the path of a file that holds the
    caption; an epoch visits the image `repeats` times."""

    image: str
    text: Text = None
    caption: str | None = None
    label: str | int | None = None
    map: str | None = None
    mask: str | None = None
    control: str | None = None
    repeats: int = 1


def normalized(name: str) -> str:
    """A column's name without capitals, spaces, hyphens and underscores: File Name, fileName and file_name are one."""
    return re.sub(r"[-_ ]", "", name).lower()


def usual_names(key: str, present: Iterable[str]) -> list[str]:
    """The names in `present` that stand for our column `key`, our own name first, then in the order of `USUAL`.

    A column of paths may also end in `_path`, `_file` or `_filename`.
    """
    order = [normalized(name) for name in USUAL[key]]
    found = {}
    for name in present:
        bare = re.sub(r"(filename|filepath|path|file)$", "", normalized(name)) if key in PATHS else normalized(name)
        if bare in order:
            found[name] = (name != key, order.index(bare), name not in USUAL[key], name)
    return sorted(found, key=lambda name: found[name])


def text_of(value: Any) -> tuple[Text, bool]:
    """The caption in a cell, or its list of alternatives, and whether every part of the cell was text.

    Mappings, not-a-number, true and gaps in a list aren't text. Spaces alone are an empty caption; among alternatives
    they are dropped.
    """
    if isinstance(value, (list, tuple)):
        parts = [_words(part) for part in value]
        return [part for part in parts if part] or None, None not in parts
    text = _words(value)
    return text, text is not None or value is None


def label_of(value: Any) -> str | int | None:
    """A cell's label, stripped of spaces; None for an empty cell and not-a-number. Raises UserError for anything else
    that is neither a whole number nor a word."""
    if isinstance(value, float) and math.isnan(value):
        value = None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        value = value.strip() or None
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise UserError(f"the label {value!r} is neither a number nor a word")
    return value


def join_tags(text: Text) -> str | None:
    """A list of tags as one caption, separated by commas; other texts as they are."""
    return ", ".join(text) if isinstance(text, list) else text


def merged(files: Mapping[str, Sequence[Sample]], findings: Findings) -> list[Sample]:
    """The samples of all files. Where several describe an image, the file nearest to it counts, and the others fill in
    what it leaves empty."""
    nearest: dict[str, str] = {}
    for path in sorted(files, key=lambda path: -path.count("/")):
        for sample in files[path]:
            nearest.setdefault(sample.image, path)
    others: dict[str, Sample] = {}
    for path, samples in files.items():
        others |= {s.image: s for s in reversed(samples) if nearest[s.image] != path}
    kept = [sample for path, samples in files.items() for sample in samples if nearest[sample.image] == path]
    if others:
        message = f"{plural(len(others), 'image')} described by several files of metadata ({examples(files)})"
        findings.warn(f"{message}: the nearest file counts, and the others fill its gaps: {examples(others)}")
    for sample in [sample for sample in kept if sample.image in others]:
        _fill(sample, others[sample.image])
    return kept


def _fill(sample: Sample, other: Sample) -> None:
    for key in COLUMNS:
        if getattr(sample, key) in (None, ""):
            setattr(sample, key, getattr(other, key))


def _words(value: Any) -> str | None:
    if isinstance(value, str):
        words = annotations.replace_surrogates(value)  # a tool may have cut a text in the middle of a letter
        return words if words.strip() else ""
    number = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)
    return str(value) if number else None
