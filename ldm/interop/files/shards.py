"""The weights of one part in several files: which are to be read."""

from pathlib import Path
from typing import Any

from ldm.common.errors import UserError

NON_EMA = "non_ema"


def rank(file: Path, stem: str) -> tuple[bool, bool, bool, int]:
    """The plain name first, as in diffusers, weights without averaging last, .safetensors before pickled ones."""
    return NON_EMA in file.name, file.stem != stem, file.suffix != ".safetensors", len(file.name)


def names(weights: Any, index: Path) -> set[str]:
    """The files that `index` names in its table `weights` of files by weight. Raises UserError unless they are beside
    it."""
    found = set(map(str, weights.values())) if isinstance(weights, dict) else {""}
    if odd := [name for name in found if not name or Path(name).name != name]:
        raise UserError(f"{index}: weight_map names {odd[0][:60]!r}, where a file beside it belongs.")
    if missing := [name for name in sorted(found) if not index.with_name(name).is_file()]:
        raise UserError(f"{index} names {missing[0][:60]}, which isn't beside it: get the folder anew.")
    return found
