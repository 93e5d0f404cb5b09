"""Labels of samples as classes: their names, and whether both splits agree."""

import re
from collections.abc import Collection, Sequence

from ldm.common.errors import UserError
from ldm.data.reading.sample import Sample

CLASS_HINT = (
    "Give each class images for both splits, or train without classes: with data.classes=false if they are folders, "
    "with data.columns='[text]' if they are in the metadata."
)
_MOST_CLASSES, _SPARSE = 2**14, 10  # labels are class numbers up to this, and beyond it if a tenth of them occur


def check_labels(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    """Raises UserError if some samples have labels and others don't."""
    if val and all(sample.label is None for sample in val):
        raise UserError(
            f"none of the {len(val)} validation images, such as {val[0].image}, has a label, but training images have "
            "labels: sort them into folders of the same names, or leave them out (data.without= names "
            "folders), so that "
            "data.val_share holds out other images."
        )
    for sample in (*train, *val):
        if sample.label is None:
            raise UserError(f"{sample.image} has no label, but other images have one; label it, or remove it.")


def class_names(labels: Collection[str | int | None]) -> tuple[str, ...]:
    """The names of classes, in the order of their numbers: words in natural order (2 before 10), or all numbers up to
    the highest.

    If most of these numbers are missing, as with identifiers, only those that occur are classes.
    """
    numbers = [label for label in labels if isinstance(label, int) and label >= 0]
    if len(numbers) == len(labels) and not are_sparse(numbers):
        return tuple(str(i) for i in range(max(numbers) + 1))
    return tuple(sorted({str(label) for label in labels}, key=_natural))


def are_sparse(numbers: Collection[int]) -> bool:
    """Whether labels are identifiers rather than class numbers that count from zero."""
    return max(numbers, default=0) >= max(_MOST_CLASSES, _SPARSE * len(set(numbers)))


def _natural(word: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key by which numbers inside words are compared by value: by length, then digit by digit."""
    parts = re.findall(r"[0-9]+|[^0-9]+", word)
    numbers = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
    return [(1, 0, p) if n is None else (0, len(n), n) for p, n in zip(parts, numbers, strict=True)], word


def classes_of_labels(train: Sequence[Sample], val: Sequence[Sample]) -> tuple[str, ...]:
    """The classes of training. Raises UserError if validation has others."""
    classes = class_names({sample.label for sample in train})
    known = set(classes)
    for sample in val:
        if str(sample.label) not in known:
            raise UserError(f"{sample.image} is of class '{sample.label}', which training doesn't have. {CLASS_HINT}")
    return classes
