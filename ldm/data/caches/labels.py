"""Labels in a model's own numbering: data that are listed otherwise than they were keep the classes' numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.mapped import packed, unpacked
from ldm.data.storage.table import Table


def numbered_as(table: Table, names: Sequence[str], whose: str) -> Table:
    """The table with its labels as numbers of `names`, the classes that a model or run knows; without a change where
    that is so already, and for a table without labels.

    Classes that are numbers themselves, and not of `names`, are the positions there. Raises UserError for a class that
    isn't known.
    """
    if "label" not in table.columns or not names or table.classes == tuple(names):
        return table
    used = np.unique(np.concatenate([np.asarray(part.columns["label"]) for part in getattr(table, "buckets", [table])]))
    numbers = np.full(int(used.max()) + 1, -1, np.int32)
    for label in used.tolist():
        numbers[label] = _number(table.classes[label] if table.classes else str(label), names, whose)
    return _relabelled(table, numbers, tuple(names))


def check_labelled(table: Table, names: Sequence[str], whose: str) -> None:
    """Raises UserError for a table without labels where a run has learnt the classes `names`."""
    if names and "label" not in table.columns:
        known = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise UserError(
            f"{whose} has learnt classes ({known}), and the data have no labels now: name them as they were. Of a "
            "folder, data.classes=true takes subfolders for classes whatever they are called."
        )


class Renumbered(np.ndarray):
    """Labels (N,) of another numbering. Pickled, they are the column that they were, mostly the name of a file, and the
    number of each of its labels."""

    made_of: tuple[Any, np.ndarray] | None = None  # a view of it has none, and is pickled as an array

    def __reduce__(self) -> Any:
        if self.made_of is None:
            return np.asarray(self).__reduce__()
        return renumbered, (packed(self.made_of[0]), self.made_of[1])


def renumbered(labels: Any, numbers: np.ndarray) -> Renumbered:
    """`numbers` (classes,) by the labels (N,), which may be packed; int64."""
    labels = unpacked(labels)
    made = numbers.astype(np.int64)[np.asarray(labels)].view(Renumbered)
    made.made_of = labels, numbers
    return made


def _relabelled(table: Table, numbers: np.ndarray, names: tuple[str, ...]) -> Table:
    label = renumbered(table.columns["label"], numbers)
    changed = replace(table, columns={**table.columns, "label": label}, classes=names)
    if isinstance(changed, Buckets):
        changed.buckets = [_relabelled(part, numbers, names) for part in changed.buckets]
    return changed


def _number(name: str, names: Sequence[str], whose: str) -> int:
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and int(name) < len(names) and not any(known.isdecimal() for known in names):
        return int(name)  # data that number their classes, for a model that names them
    raise UserError(
        f"the data have a class '{name}', which {whose} doesn't know: leave it out or name it as there."
        f"{did_you_mean(name, names)}"
    )
