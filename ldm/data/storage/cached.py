"""Tables from a cache on disk, made there once by the first process that needs them."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ldm.common.ranks import rank
from ldm.data.storage.table import Table, replace_file

_PAIR = ("train", "val")


def cached(cache: Path, key: str, make: Callable[[Path], tuple[Table, Table]]) -> tuple[Table, Table]:
    """Train and validation tables from `cache/key`, made there by `make(folder)` if they don't exist yet."""
    tables = cached_parts(cache, key, lambda folder: dict(zip(_PAIR, make(folder), strict=True)))
    return tables["train"], tables["val"]


def cached_parts(cache: Path, key: str, make: Callable[[Path], Mapping[str, Table]]) -> dict[str, Table]:
    """Tables by name from `cache/key`, made there by `make(folder)` if they don't exist yet.

    They are made in a temporary folder, renamed when complete, so that neither processes that start together nor an
    interrupted one do harm. `make` may put memory-mapped arrays into folders there that are named like the tables.
    """
    home = cache / key
    while rank() > 0 and not _is_complete(home):  # the first of several processes makes it
        time.sleep(0.2)
    if not _is_complete(home):
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            tables = make(work)
            for name, table in tables.items():
                table.save(work / name)
            replace_file(work / "tables.json", json.dumps(list(tables)).encode())
            work.chmod(0o755)  # mkdtemp makes folders that others can't read
            _move(work, home)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return {name: Table.load(home / name) for name in _names(home)}


def _names(home: Path) -> Sequence[str]:
    try:
        return json.loads((home / "tables.json").read_text())
    except OSError:
        return _PAIR


def _is_complete(home: Path) -> bool:
    return all((home / name / "table.json").exists() for name in _names(home))


def _move(work: Path, home: Path) -> None:
    if home.exists() and not _is_complete(home):
        shutil.rmtree(home)
    try:
        os.rename(work, home)
    except OSError:
        if not _is_complete(home):  # otherwise another process was faster, with the same content
            raise
