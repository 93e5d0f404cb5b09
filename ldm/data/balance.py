"""Balanced training: each value of a column is visited equally often, however many images have it."""

from collections.abc import Sequence

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.common.ranks import rank
from ldm.data.storage.table import REPEATS, Table

_FINEST, _TOLERANCE = 8, 0.1  # visits that the commonest value may get, so that all shares are within this of equal


def balanced_repeats(parts: Sequence[Table], column: str) -> list[np.ndarray]:
    """How often an epoch visits each sample of each part, (N,) int64, for all values of `column` to have equally many
    visits. The numbers of visits agree to within a tenth, unless the commonest value would need more than eight visits
    for that. An image with repeats counts that many times.

    Raises UserError for a column that the data don't have, or that doesn't have a whole number for each image.
    """
    check_balance(parts, column)
    values = np.concatenate([np.asarray(part.columns[column]) for part in parts])
    repeats = np.concatenate([np.asarray(part.columns.get(REPEATS, np.ones(len(part), np.int64))) for part in parts])
    _, which = np.unique(values, return_inverse=True)  # (N,)
    each = repeats * _factors(np.bincount(which, weights=repeats))[which]
    return np.split(each, np.cumsum([len(part) for part in parts])[:-1])


def _factors(counts: np.ndarray) -> np.ndarray:
    """The smallest whole factors (values,) that make `counts` (values,) equal within the tolerance."""
    wanted = counts.max() / counts
    for finest in range(1, _FINEST + 1):
        factors = np.round(finest * wanted)
        if np.abs(factors / (finest * wanted) - 1).max() <= _TOLERANCE:
            break
    return factors.astype(np.int64)


def check_balance(parts: Sequence[Table], column: str) -> None:
    """Raises UserError unless every part has `column`, with a whole number for each image."""
    usable = [name for name, values in parts[0].columns.items() if name != REPEATS and _is_whole(values)]
    if all(column in part.columns and _is_whole(part.columns[column]) for part in parts):
        return
    why = "isn't a column of whole numbers" if column in parts[0].columns else "isn't a column of the data"
    known = f"columns of whole numbers: {', '.join(usable)}" if usable else "the data have no column of whole numbers"
    raise UserError(f"balance={column} {why}.{did_you_mean(column, usable)} ({known})")


def _is_whole(values: object) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu"


def say_balance(column: str | None, table: Table) -> None:
    """Prints how `column` balances the visits to a table, or its buckets. Raises UserError where it can't."""
    if column:
        sentence = describe_balance(getattr(table, "buckets", [table]), column)
        if rank() == 0:
            print(sentence, flush=True)


def describe_balance(parts: Sequence[Table], column: str) -> str:
    """'balance=size: 3 values, visited equally often; an epoch visits an image 1 to 5 times'."""
    repeats = np.concatenate(balanced_repeats(parts, column))
    number = len(np.unique(np.concatenate([np.asarray(part.columns[column]) for part in parts])))
    low, high = int(repeats.min()), int(repeats.max())
    times = f"{low} to {high} times" if low < high else f"{low} times" if low > 1 else "once"
    return f"balance={column}: {number} values, visited equally often; an epoch visits an image {times}"
