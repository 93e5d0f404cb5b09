"""Images held out for validation where the data set doesn't name them."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.preparing.decode import Split
from ldm.data.preparing.labels import CLASS_HINT, class_names
from ldm.data.reading.findings import Findings, plural
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store

IMAGE, GROUP = "image", "group"  # what stays on one side of the split
_ONE = {IMAGE: "an image", GROUP: "a group"}
_NO_CLASSES = "data.classes=none doesn't read folders as classes."


def _without_ending(path: str) -> str:
    return posixpath.splitext(path)[0]


def split_off(
    store: Store,
    found: list[Sample],
    share: float,
    findings: Findings,
    image_of: Callable[[str], str] = _without_ending,
    classes: Sequence[str] = (),
    unit: str = IMAGE,
) -> tuple[Split, Split]:
    """A fixed random `share` of the images for validation, the others for training.

    Several samples of one image stay together: rows that name the same file, or files in different formats. `image_of`
    gives the name of the image, or of its group, for a path; `unit` says which. Unless the data set names its
    `classes`, training keeps an image of each class. Raises UserError if there are too few images.
    """
    first: dict[str, int] = {}
    image = np.array([first.setdefault(image_of(sample.image), len(first)) for sample in found])  # (N,)
    n = len(first)
    if n < 2:
        raise UserError(
            f"{store.where} holds too few images ({n}); training and validation need one each.{reasons_in(findings)}"
        )
    if n < len(found):
        findings.remark(f"{len(found)} samples are of {n} {unit}s; all samples of {_ONE[unit]} are in the same split")
    order, count = permutation(0, 0, n), max(1, round(share * n))
    is_held = np.isin(image, order[:count])  # (N,)
    if not classes and _lacks_class([found[i] for i in np.flatnonzero(~is_held)], found):
        is_held = np.isin(image, _held_without_last(found, image, order, count=count, unit=unit))
    train = [found[i] for i in np.flatnonzero(~is_held)]
    val = [found[i] for i in np.flatnonzero(is_held)]
    return (store, train), (store, val)


def _lacks_class(train: Sequence[Sample], found: Sequence[Sample]) -> bool:
    """Whether training has classes, but not all of those among the samples."""
    labels = {sample.label for sample in train}
    known = {*class_names(labels)}
    return labels != {None} and any(str(sample.label) not in known for sample in found)


def _held_without_last(
    found: Sequence[Sample], image: np.ndarray, order: np.ndarray, *, count: int, unit: str
) -> list[int]:
    """The first `count` images in `order` that leave others of their class to training. Raises UserError.

    `image` (N,) are the numbers of the samples' images.
    """
    labels: dict[int, set[str]] = defaultdict(set)
    for sample, i in zip(found, image.tolist(), strict=True):
        labels[i].add(str(sample.label))
    left = Counter(label for of in labels.values() for label in of)
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) < count and all(left[label] > 1 for label in labels[i]):
            chosen.append(i)
            left.subtract(labels[i])
    if not chosen and unit == GROUP:
        reason = "each holds all images of a class"
        raise UserError(f"no group of data.group= can be held out for validation, since {reason}. {_NO_CLASSES}")
    if not chosen:
        reason = "each one is the only image of its class (an image and its copies count as one)"
        raise UserError(f"no image can be held out for validation, as {reason}. {CLASS_HINT}")
    return chosen


def reasons_in(findings: Findings) -> str:
    """Other findings, as sentences for the message that there are too few images."""
    counts = Counter(findings.left_out.values()).most_common(3)
    reasons = [f"{reason} ({plural(count, 'file')})" for reason, count in counts]
    return "".join(f" {_capitalized(sentence)}." for sentence in [*reasons, *findings.warnings[:2]])


def _capitalized(sentence: str) -> str:
    """The sentence with a capital letter, unless it begins with a file's name."""
    first = sentence.split(" ")[0]
    return sentence if "/" in first or "." in first else sentence[0].upper() + sentence[1:]
