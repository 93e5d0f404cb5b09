"""The hub's hashes of files: SHA-256 for those in LFS, git's SHA-1 of a blob for the others."""

import hashlib
import os
import re
from pathlib import Path

from ldm.common.files import sha256_of

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PIECE = 2**20


def is_intact(file: Path, expected: str) -> bool:
    """Whether a file has the hash that the hub has for it, in hexadecimal."""
    return expected == (sha256_of(file) if len(expected) == 64 else git_sha1_of(file))


def git_sha1_of(file: Path) -> str:
    """SHA-1 of "blob SIZE", a zero byte and the content, as git identifies files."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def of_cached(file: Path) -> str | None:
    """The hash by which the hub's cache names the content of `file`; None on a system without symbolic links."""
    name = Path(os.readlink(file)).name if file.is_symlink() else ""
    return name if _HASH.fullmatch(name) else None
