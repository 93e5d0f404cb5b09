"""Files that are whole or absent, whatever is killed or full while they are written."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

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


class Hashing:
    """A file for writing that counts and hashes what goes through it."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            self.file.write(content)
        except OSError as error:
            self.failure = error  # torch.save turns it into a RuntimeError that hides the cause
            raise
        view = memoryview(content)
        self.size += view.nbytes
        self.sha256.update(view)
        return view.nbytes

    def flush(self) -> None:
        self.file.flush()


def write_recorded(path: Path, content: bytes | Callable[[Any], object]) -> None:
    """Writes `path` as `atomic_write` does, and beside it PATH.json with its size and SHA-256.

    The record comes first: a process killed between the two leaves a record without a file, which nobody looks for.
    """

    def write(file: BinaryIO) -> None:
        hashing = Hashing(file)
        try:
            content(hashing) if callable(content) else hashing.write(content)
        except RuntimeError:
            if hashing.failure:
                raise hashing.failure from None
            raise
        atomic_write(record_of(path), json.dumps({"size": hashing.size, "sha256": hashing.sha256.hexdigest()}))

    atomic_write(path, write)


def record_of(path: Path) -> Path:
    """Where size and hash of a file are recorded."""
    return path.with_name(path.name + ".json")


def is_whole(path: Path) -> bool:
    """Whether a recorded file's bytes are those that were written."""
    try:
        expected = json.loads(record_of(path).read_text())
        return path.stat().st_size == expected["size"] and sha256_of(path) == expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One process at a time holds `folder`, from here to the end of the `with`; the others wait.

    The lock is the kernel's: it ends with the process that holds it, however that ends. Where the file system has no
    locks, nobody waits: what is done inside must then bear to be done twice.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
