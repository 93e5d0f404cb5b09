"""Splits by a column of the metadata named split, with the words train, val and test, and groups by a column."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.rows import is_gap
from ldm.data.reading.sample import Sample
from ldm.data.reading.split_folders import split_rank

_NAMES = ("split", "subset", "partition")


def split_column(rows: Sequence[Mapping[str, Any]], taken: Sequence[str]) -> str | None:
    """The column of such a name, regardless of case, whose words name both splits; None where there is none.

    Columns in `taken` are read as something else.
    """
    names = dict.fromkeys(name for row in rows for name in row if name.lower() in _NAMES and name not in taken)
    for name in names:
        ranks = {split_rank(row[name]) for row in rows if isinstance(row.get(name), str)}
        if 0 in ranks and ranks - {0, None}:
            return name
    return None


def read_splits(
    path: str, name: str, images: Sequence[str], rows: Sequence[Mapping[str, Any]], findings: Findings
) -> None:
    """Keeps each image's word for its split in `findings.splits`: that of its first row, with a warning if its rows
    differ."""
    findings.split_column = f"the column '{name}' of {path}"
    differ: list[str] = []
    for image, row in zip(images, rows, strict=True):
        word = str(row.get(name) or "")
        if findings.splits.setdefault(image, word) != word:
            differ.append(image)
    if differ:
        message = f"{plural(len(differ), 'row')} with another '{name}' than an earlier row of the same image"
        findings.warn(f"{message}, which is used: {examples(differ)}")


def read_groups(images: Sequence[str], rows: Sequence[Mapping[str, Any]], is_csv: bool, findings: Findings) -> None:
    """Keeps in `findings.groups` what each image has in the column of groups: that of its first row, with a warning if
    its rows differ."""
    name, differ = findings.group_column, list[str]()
    for image, row in zip(images, rows, strict=True):
        value = row.get(name) if name else None
        if value in (None, "") or is_csv and is_gap(value):
            continue
        if findings.groups.setdefault(image, str(value)) != str(value):
            differ.append(image)
    if differ:
        message = f"{plural(len(differ), 'row')} with another '{name}' than an earlier row of the same image"
        findings.warn(f"{message}, which is used: {examples(differ)}")


def by_column(found: Sequence[Sample], findings: Findings) -> tuple[list[Sample], list[Sample]]:
    """The training and the validation samples: those of val or, if there are none, of dev or test. Others are left
    out."""
    ranks = {image: split_rank(word) for image, word in findings.splits.items()}
    best = min((rank for s in found if (rank := ranks.get(s.image))), default=None)
    train: list[Sample] = []
    val: list[Sample] = []
    for sample in found:
        rank = ranks.get(sample.image)
        if rank == 0:
            train.append(sample)
        elif rank is not None and rank == best:
            val.append(sample)
        else:
            word = findings.splits.get(sample.image) or "nothing"
            findings.leave_out([sample.image], f"in neither split, since {findings.split_column} says {word}")
    return train, val
