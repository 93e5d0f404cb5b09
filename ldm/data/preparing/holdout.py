"""Images held out for validation, where the data don't say which these are."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.preparing.decode import LEAVE, Split, class_names
from ldm.data.reading.sample import Sample, Seen, plural
from ldm.data.reading.store import Store


def _without_ending(path: str) -> str:
    return posixpath.splitext(path)[0]


def split_off(
    store: Store,
    found: list[Sample],
    share: float,
    seen: Seen,
    image_of: Callable[[str], str] = _without_ending,
    classes: Sequence[str] = (),
) -> tuple[Split, Split]:
    """A fixed random `share` of the images for validation, the others for training.

    Several samples of one image stay together: rows that name the same file, or files that differ in their format.
    `image_of` a path names the image. Where the data doesn't name its `classes`, training keeps an image of each.
    """
    first: dict[str, int] = {}
    image = np.array([first.setdefault(image_of(sample.image), len(first)) for sample in found])  # (N,)
    n = len(first)
    if n < 2:
        raise UserError(f"{store.where} holds too few images, {n}; training and validation need one each.{told(seen)}")
    if n < len(found):
        seen.aside(f"{len(found)} samples are of {n} images, which are wholly for training or for validation")
    order, count = permutation(0, 0, n), max(1, round(share * n))
    held = np.isin(image, order[:count])  # (N,)
    if not classes and _lacks_class([s for s, h in zip(found, held, strict=True) if not h], found):
        held = np.isin(image, _sparing(found, image, order, count))
    train, val = ([found[i] for i in np.flatnonzero(which)] for which in (~held, held))
    return (store, train), (store, val)


def _lacks_class(train: Sequence[Sample], found: Sequence[Sample]) -> bool:
    """Whether training has classes, but not all of those that were found."""
    labels = {sample.label for sample in train}
    known = {*class_names(labels)}
    return labels != {None} and any(str(sample.label) not in known for sample in found)


def _sparing(found: Sequence[Sample], image: np.ndarray, order: np.ndarray, count: int) -> list[int]:
    """The first `count` images of the order that aren't the last of a class for training. Raises UserError.

    `image` (N,) are the samples' images."""
    labels: dict[int, set[str]] = defaultdict(set)
    for sample, i in zip(found, image.tolist(), strict=True):
        labels[i].add(str(sample.label))
    left = Counter(label for of in labels.values() for label in of)
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) < count and all(left[label] > 1 for label in labels[i]):
            chosen.append(i)
            left.subtract(labels[i])
    if not chosen:
        raise UserError(f"no image can be held out for validation, as each is the only one of its class. {LEAVE}")
    return chosen


def told(seen: Seen) -> str:
    """What else was seen where there are too few images."""
    reasons = [
        f"{reason} ({plural(count, 'file')})" for reason, count in Counter(seen.left_out.values()).most_common(3)
    ]
    return "".join(f" {_begun(sentence)}." for sentence in [*reasons, *seen.notes[:2]])


def _begun(sentence: str) -> str:
    """With a capital letter, but for a file's name in front."""
    first = sentence.split(" ")[0]
    return sentence if "/" in first or "." in first else sentence[0].upper() + sentence[1:]
