"""Files that are whole or absent, whatever is killed or full while they are written."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ldm.errors import UserError


def atomic_write(path: str | Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Replaces `path` by `content` (bytes, text, or a function that writes to the open file), or leaves it as it was.

    The new file is staged in the target's own folder, since a move across file systems isn't atomic, and both file and
    folder are synced, so that after a power cut the name never points at a half. Raises UserError where it can't write.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(staged, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): make room or mend the rights, then resume=true."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
