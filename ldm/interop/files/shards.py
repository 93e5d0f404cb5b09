"""Which files to read where the weights of one part are in several."""

from pathlib import Path
from typing import Any

from ldm.common.errors import UserError

NON_EMA = "non_ema"


def rank(file: Path, stem: str) -> tuple[bool, bool, bool, int]:
    """A sort key: the plain name first, as in diffusers, then .safetensors before pickled files; weights without
    averaging last."""
    return NON_EMA in file.name, file.stem != stem, file.suffix != ".safetensors", len(file.name)


def names(weights: Any, index: Path) -> set[str]:
    """The files in the table `weights` of `index`, by weight. Raises UserError unless they are beside it."""
    found = set(map(str, weights.values())) if isinstance(weights, dict) else {""}
    if odd := [name for name in found if not name or Path(name).name != name]:
        raise UserError(f"{index}: weight_map names {odd[0][:60]!r}, which isn't a file beside it.")
    if missing := [name for name in sorted(found) if not index.with_name(name).is_file()]:
        raise UserError(f"{index} names {missing[0][:60]}, which isn't beside it: download the folder again.")
    return found
