"""Captions that change at each visit of an image: tags in another order, tags left out, and wildcards {a|b}.

All choices are functions of (seed, position), so a resumed run makes the same ones.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.randomness import uniform
from ldm.common.ranks import rank
from ldm.data.datamodule import Read
from ldm.data.storage.lazy import Lazy
from ldm.data.storage.table import Table

_TOKENS = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+|[{}]")
_CHOICE = re.compile(r"(?<!\{)\{[^{}]*\|[^{}]*\}(?!\})")
_LOOKED_AT = 1000  # captions of which the run says what they hold


@dataclass(frozen=True)
class CaptionChanges:
    """How captions change in training.

    `shuffle` reorders the parts between separators, and `drop` is the probability with which each part is left out.
    The first `keep_first` parts stay in their place. With `wildcards`, {a|b} stands for one of its alternatives, which
    may be empty, and {{ and }} for braces.
    """

    seed: int = 0
    shuffle: bool = False
    keep_first: int = 0
    drop: float = 0.0
    separator: str = ","
    wildcards: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "CaptionChanges | None":
        """The changes that a run's config asks for; None if there are none. Raises UserError."""
        options = dict(config.get("captions") or {})
        made = cls(seed=config["seed"], **options)
        if not made.separator.strip():
            raise UserError("captions.separator is empty: give what stands between tags, such as a comma.")
        if made.keep_first and not (made.shuffle or made.drop):
            raise UserError(
                "captions.keep_first= has no effect without captions.shuffle=true or captions.drop=: add one."
            )
        return made if made.shuffle or made.drop or made.wildcards else None

    def __call__(self, captions: Sequence[str], position: Tensor) -> list[str]:
        """The captions (B) as they are read at the visits `position` (B,)."""
        if self.wildcards:
            captions = self.chosen(captions, position)
        return self._tags(captions, position) if self.shuffle or self.drop else list(captions)

    def chosen(self, captions: Sequence[str], position: Tensor) -> list[str]:
        """The captions with one alternative in the place of each wildcard, and nothing else changed."""
        tokens = [_TOKENS.findall(caption) for caption in captions]
        numbers = uniform(self.seed, "wildcard", position, (max(map(len, tokens), default=0) or 1,)).tolist()
        pairs = zip(tokens, numbers, strict=True)
        return ["".join(_read(token, u) for token, u in zip(row, us, strict=False)) for row, us in pairs]

    def _tags(self, captions: Sequence[str], position: Tensor) -> list[str]:
        rows = [self.parts(caption) for caption in captions]
        most = max(map(len, rows), default=0) or 1
        order = uniform(self.seed, "tag order", position, (most,)).tolist()
        coins = uniform(self.seed, "tag drop", position, (most,)).tolist()
        joint = f"{self.separator.strip()} "
        return [joint.join(self._changed(*row)) for row in zip(rows, order, coins, strict=True)]

    def _changed(self, parts: list[str], order: list[float], coins: list[float]) -> list[str]:
        fixed, free = parts[: self.keep_first], list(enumerate(parts))[self.keep_first :]
        kept = [(i, part) for i, part in free if coins[i] >= self.drop]
        if self.shuffle:
            kept.sort(key=lambda pair: order[pair[0]])
        return fixed + [part for _, part in kept]

    def parts(self, caption: str) -> list[str]:
        """The tags of a caption, without empty ones."""
        return [part.strip() for part in caption.split(self.separator.strip()) if part.strip()]

    def reader(self, read: Read) -> Read:
        """`read`, with the captions of training batches changed and those of validation unchanged."""
        return _Changing(self, read)

    def fixed(self, table: Table) -> Table:
        """A validation table with one alternative chosen for each wildcard, always the same."""
        if not self.wildcards or "text" not in table.columns:
            return table
        column: Any = table.columns["text"]
        changed = replace(table, columns={**table.columns, "text": Chosen(column, self)})
        buckets = getattr(table, "buckets", None)
        return replace(changed, buckets=[self.fixed(one) for one in buckets]) if buckets else changed  # type: ignore[call-arg]

    def check(self, table: Table) -> None:
        """Prints in how many training captions these changes find something to change. Raises UserError for data
        without captions."""
        if "text" not in table.columns:
            raise UserError("captions.X= changes captions, but these data have none: leave it out, or add captions.")
        some = _some(table)
        lines = []
        if self.shuffle or self.drop:
            tagged = sum(len(self.parts(caption)) > 1 for caption in some)
            lines.append(f"tags separated by '{self.separator.strip()}' in {tagged} of {len(some)} captions")
        if self.wildcards:
            lines.append(f"wildcards in {sum(map(_has_choice, some))} of {len(some)} captions")
            if alone := sum(_has_single_brace(caption) for caption in some):
                lines.append(f"an unmatched brace, read as text, in {alone}")
        if rank() == 0:
            print(f"captions change at each visit: {', '.join(lines)}", flush=True)


class _Changing:
    """A `Read` that changes the captions of training batches first."""

    def __init__(self, changes: CaptionChanges, read: Read):
        self.changes, self.read = changes, read

    def __call__(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        if training and "text" in batch:
            batch = batch | {"text": self.changes(batch["text"], batch["position"])}
        return self.read(batch, training)


class Chosen(Lazy):
    """Captions, or lists of captions, with the wildcards of row i chosen by (seed, i)."""

    def __init__(self, captions: Sequence[Any] | np.ndarray, changes: CaptionChanges):
        self.captions, self.changes = captions, changes

    def __len__(self) -> int:
        return len(self.captions)

    def row(self, i: int) -> Any:
        """The caption of row `i`, or the list of its captions."""
        given = self.captions[i]
        texts = [given] if isinstance(given, str) else list(given)
        made = self.changes.chosen(texts, torch.full((len(texts),), i))
        return made[0] if isinstance(given, str) else made


def prepare_captions(
    tables: tuple[Table, Table], config: Mapping[str, Any]
) -> tuple[CaptionChanges | None, tuple[Table, Table]]:
    """The changes that the config asks for, and the tables, with validation's wildcards chosen. Prints what changes.

    Raises UserError for data without captions.
    """
    changes = CaptionChanges.of(config)
    if changes is None:
        _report_wildcards(tables[0])
        return None, tables
    changes.check(tables[0])
    return changes, (tables[0], changes.fixed(tables[1]))


def changing(read: Read, changes: CaptionChanges | None) -> Read:
    """`read`, with changed captions if there are changes."""
    return changes.reader(read) if changes else read


def _report_wildcards(table: Table) -> None:
    """Prints a hint if captions seem to hold alternatives in another trainer's syntax."""
    some = _some(table) if "text" in table.columns else []
    found = sum(map(_has_choice, some))
    if found and rank() == 0:
        print(
            f"{found} of {len(some)} captions hold {{a|b}}, which is read as text: captions.wildcards=true chooses "
            "one of the alternatives at each visit",
            flush=True,
        )


def _some(table: Table) -> list[str]:
    """Up to a thousand captions, alternatives included."""
    rows = islice(table.columns["text"], _LOOKED_AT)
    return [caption for row in rows for caption in ([row] if isinstance(row, str) else row)]


def _read(token: str, u: float) -> str:
    """The text that a token of a caption stands for; `u` in (0, 1) chooses among its alternatives."""
    if token in ("{{", "}}"):
        return token[0]
    if len(token) > 1 and token[0] == "{":
        alternatives = token[1:-1].split("|")
        return alternatives[int(u * len(alternatives))]
    return token


def _has_choice(caption: str) -> bool:
    return _CHOICE.search(caption) is not None


def _has_single_brace(caption: str) -> bool:
    return any(token in "{}" for token in _TOKENS.findall(caption))
