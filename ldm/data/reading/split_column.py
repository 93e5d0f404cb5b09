"""Splits by a column of the metadata: train, val and test in a column called split."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.data.reading.layout import split_rank
from ldm.data.reading.sample import Sample, Seen, plural, some

_NAMES = ("split", "subset", "partition")


def split_column(rows: Sequence[Mapping[str, Any]], taken: Sequence[str]) -> str | None:
    """The column called so, in any case, whose words name training and validation; None where there is none."""
    names = {name: None for row in rows for name in row if name.lower() in _NAMES and name not in taken}
    for name in names:
        ranks = {split_rank(row[name]) for row in rows if isinstance(row.get(name), str)}
        if 0 in ranks and ranks - {0, None}:
            return name
    return None


def note_splits(path: str, name: str, images: Sequence[str], rows: Sequence[Mapping[str, Any]], seen: Seen) -> None:
    """Keeps each image's word in `seen.splits`, the first where rows differ, which is noted."""
    seen.split_column = f"the column '{name}' of {path}"
    differ: list[str] = []
    for image, row in zip(images, rows, strict=True):
        word = str(row.get(name) or "")
        if seen.splits.setdefault(image, word) != word:
            differ.append(image)
    if differ:
        said = f"{plural(len(differ), 'row')} whose '{name}' differs from an earlier row of the same image"
        seen.note(f"{said}, which counts: {some(differ)}")


def by_column(found: Sequence[Sample], seen: Seen) -> tuple[list[Sample], list[Sample]]:
    """Training's samples and validation's: those of val or, without any, of dev or test. Others are left out."""
    ranks = {image: split_rank(word) for image, word in seen.splits.items()}
    best = min((rank for s in found if (rank := ranks.get(s.image))), default=None)
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in found:
        rank = ranks.get(sample.image)
        if rank == 0 or (rank is not None and rank == best):
            parts[0 if rank == 0 else 1].append(sample)
        else:
            word = seen.splits.get(sample.image) or "nothing"
            seen.leave([sample.image], f"of neither split, as {seen.split_column} says {word}")
    return parts
