"""The names of shards: folders, patterns, lists and URLs."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from ldm.common.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(pattern: str | Sequence[str]) -> list[str]:
    """The shards in a folder, or those that match a pattern or a list of patterns, in order. Raises UserError."""
    if not isinstance(pattern, str):
        return [shard for part in pattern for shard in expand(part)]
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        start, end = pattern[: found.start()], pattern[found.end() :]
        numbers = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
        return [shard for number in numbers for shard in expand(start + number + end)]
    path = Path(pattern).expanduser()
    if path.is_dir():
        shards = sorted(str(p) for kind in ("*.tar", "*.tar.gz", "*.tgz") for p in path.glob(kind))
    else:
        shards = sorted(glob.glob(str(path))) if any(mark in pattern for mark in "*?[") else [pattern]
    if not shards:
        raise UserError(f"data.root={pattern}: there are no shards (.tar); give a folder, a file or a pattern.")
    if missing := [s for s in shards if not is_url(s) and not Path(s).expanduser().is_file()]:
        raise UserError(f"data.root: there is no shard at {missing[0]}.")
    return shards


def is_url(shard: str) -> bool:
    """Whether a shard is given by a URL, `https:`, `s3:`, `pipe:` and the like, not by a path."""
    return re.match(r"[a-z0-9]+:", shard) is not None


def identity(shard: str) -> str:
    """What all names of one shard have in common."""
    return shard if is_url(shard) else str(Path(shard).expanduser().resolve())
