"""Tables for a check: made as for training, but also from data that training would refuse."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.common.registry import build
from ldm.data.augmenting.options import Variants
from ldm.data.preparing.decode import TooManyBad
from ldm.data.preparing.heads import SizesDiffer
from ldm.data.preparing.summary import Facts
from ldm.data.storage.table import Table

_VARIANTS = [option.name for option in fields(Variants)]
Suggest = Callable[[Sequence[tuple[int, int]]], Any]  # (height, width) of all images -> data.size


@dataclass
class Prepared:
    """A source with its tables, and what it found.

    `options` are options that training needs in addition to those given, such as a size. `refusal` is why training
    would stop; "" if it wouldn't.
    """

    source: Any
    train: Table
    val: Table
    facts: Facts
    options: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""


@contextmanager
def prepared(spec: Mapping[str, Any], cache: Path, suggest: Suggest) -> Iterator[Prepared]:
    """The tables of the source `spec`, in the cache where training finds them.

    The images are checked without the variants that training makes of them. If images of several sizes need
    `data.size`, `suggest` chooses it. If more images are bad than training accepts, training couldn't use the tables,
    so they are made in a temporary folder that is removed in the end.
    """
    spec = {key: value for key, value in spec.items() if key not in _VARIANTS}
    options: dict[str, Any] = {}
    refusal = ""
    with tempfile.TemporaryDirectory(prefix="ldm-check-") as scratch:
        while True:
            source = build({**spec, **options, **({"max_bad_share": 1.0} if refusal else {})}, "data")
            source.reports = False
            try:
                train, val = source.tables(Path(scratch) if refusal else cache)
                break
            except SizesDiffer as error:
                options["size"] = suggest(error.sizes)
            except TooManyBad as error:
                refusal = str(error)
        facts = _facts(source, train, val, Path(scratch) if refusal else cache)
        yield Prepared(source, train, val, facts, options=options, refusal=refusal)


def _facts(source: Any, train: Table, val: Table, cache: Path) -> Facts:
    """What the source found. For a source that finds nothing, such as a built-in data set, only the numbers of
    images."""
    if hasattr(source, "facts"):
        return source.facts(cache)
    return Facts(
        source=source.name, training=len(train), validation=len(val), split="the data set's own, or a fixed share"
    )
