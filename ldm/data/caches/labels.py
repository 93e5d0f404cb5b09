"""Labels in a model's own numbering: a class keeps its number, in whatever order a data set lists the classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.mapped import packed, unpacked
from ldm.data.storage.table import Table


def numbered_as(table: Table, names: Sequence[str], whose: str) -> Table:
    """The table with its labels as indices of `names`, the classes that a model or run knows; unchanged if they are
    already, or if it has no labels.

    A class that is a number and isn't in `names` is itself an index of `names`. Raises UserError for an unknown
    class. `whose` names the model or run in messages.
    """
    if "label" not in table.columns or not names or table.classes == tuple(names):
        return table
    used = np.unique(np.concatenate([np.asarray(part.columns["label"]) for part in getattr(table, "buckets", [table])]))
    numbers = np.full(int(used.max()) + 1, -1, np.int32)
    for label in used.tolist():
        numbers[label] = _number(table.classes[label] if table.classes else str(label), names, whose)
    return _relabelled(table, numbers, tuple(names))


def check_labelled(table: Table, names: Sequence[str], whose: str) -> None:
    """Raises UserError if a run has learned classes, `names`, and the table has no labels."""
    if names and "label" not in table.columns:
        known = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise UserError(
            f"{whose} has learned classes ({known}), but the data have no labels now: give the labels that it "
            "was trained with. For a folder, data.classes=true reads all subfolders as classes, whatever their names."
        )


class Renumbered(np.ndarray):
    """Labels (N,) in another numbering. They are pickled as what they were made from: the original column, usually as
    the name of its file, and the new number of each class."""

    made_of: tuple[Any, np.ndarray] | None = None  # views have none, and are pickled as arrays

    def __reduce__(self) -> Any:
        if self.made_of is None:
            return np.asarray(self).__reduce__()
        return renumbered, (packed(self.made_of[0]), self.made_of[1])


def renumbered(labels: Any, numbers: np.ndarray) -> Renumbered:
    """Labels (N,), perhaps packed, in another numbering: class i becomes `numbers[i]`. (N,) int64."""
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
        return int(name)  # the data have numbers for classes that the model has names for
    raise UserError(
        f"the data have a class '{name}', which {whose} doesn't know: leave it out or name it as there."
        f"{did_you_mean(name, names)}"
    )
