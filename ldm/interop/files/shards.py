"""The weights of one part in one file or several: which are to be read."""

import re
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.values import read_json

NON_EMA = "non_ema"
_PIECE = re.compile(r"-\d{5}-of-\d{5}")  # in the name of one file of several


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files of a part's weights: those that the plain index names, else one file, else those of another index (of
    pickled files, or of a variant: `.fp16`). Empty if there are none; raises UserError for pieces without an index."""
    plain = folder / f"{stem}.safetensors.index.json"
    if plain.is_file():
        return _named(plain)
    patterns = (f"{stem}.safetensors", f"{stem}.*.safetensors", f"{stem}*.bin")
    found = [file for pattern in patterns for file in folder.glob(pattern)]
    if whole := [file for file in found if not _PIECE.search(file.name)]:
        return sorted(whole, key=lambda file: rank(file, stem))[:1]
    indices = sorted(folder.glob(f"{stem}.*index*.json"), key=lambda file: (".bin." in file.name, file.name))
    if indices:
        return _named(indices[0])
    if pieces := sorted(folder.glob(f"{stem}*-of-*")):
        raise UserError(
            f"{folder}: {pieces[0].name} is one part of the weights, and the index of the parts is missing: "
            "download the folder again."
        )
    return []


def _named(index: Path) -> list[Path]:
    """The files beside an index that it names."""
    return sorted(index.with_name(name) for name in names(read_json(index).get("weight_map"), index))


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
