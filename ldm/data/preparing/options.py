"""Options that several sources share: checks, and their plain form."""

from collections.abc import Mapping, Sequence

from ldm.common.errors import UserError, did_you_mean
from ldm.data.reading.sample import COLUMNS
from ldm.data.storage.buckets import Shape

# data.captions: a file is one caption; a line is one; captions are inside the images; the tags in a list are one; an
# image's name is one.
WHOLE, LINES, EMBEDDED, TAGS, NAMES = "whole", "lines", "embedded", "tags", "names"


def check_captions(captions: str, known: Sequence[str] = (WHOLE, LINES, EMBEDDED, TAGS, NAMES)) -> str:
    """`captions`, the option. Raises UserError if it isn't among `known`."""
    if captions not in known:
        guess = did_you_mean(captions, known)
        raise UserError(f"data.captions={captions} is unknown.{guess} It can be {', '.join(known)}.")
    return captions


def check_val_share(val_share: float) -> float:
    """`val_share`, the option. Raises UserError unless it lies between 0 and 1."""
    if not 0 < val_share < 1:
        raise UserError(f"data.val_share={val_share} must lie between 0 and 1.")
    return val_share


def metadata_names(columns: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """The wanted columns (data.columns), each with its name in the source's metadata. Raises UserError."""
    for key in columns or ():
        if key not in COLUMNS:
            raise UserError(f"data.columns: there is no column '{key}'.{did_you_mean(key, COLUMNS)}")
    if isinstance(columns, Mapping):
        return {key: columns.get(key, key) for key in COLUMNS}
    return {key: key for key in COLUMNS if columns is None or key in columns}


def as_shape(size: int | Sequence[int] | None) -> Shape | None:
    """(height, width) of a single side or of [height, width]. Raises UserError for other lists."""
    if size is None:
        return None
    if not isinstance(size, int) and len(size) != 2:
        raise UserError(f"data.size={list(size)}: give one number or [height, width].")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def step_of_buckets(step: int | None, size: int | Sequence[int] | None) -> int:
    """The step of the buckets' sides, by default an eighth of `size`. Raises UserError unless `size` is one number."""
    if not isinstance(size, int):
        raise UserError("data.buckets=true needs data.size=NUMBER, the side of a square with the area of all shapes.")
    return step or max(8, size // 8)
