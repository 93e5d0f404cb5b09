"""Files that are either whole or absent, even if the process is killed or the disk is full while they are written."""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

from ldm.common.errors import UserError

Content = bytes | str | Callable[[BinaryIO], object]


def atomic_write(path: str | Path, content: Content) -> None:
    """Replaces `path` by `content` (bytes, text, or a function that writes to the open file), or leaves it as it was.

    The new file is staged in the target's own folder, since a move across file systems isn't atomic, and both file and
    folder are synced, so that after a power cut the name never points at half a file. Raises UserError where it can't
    be written.
    """
    with writing(path), staged(Path(path), content) as file:
        os.replace(file, path)
        sync_folder(Path(path).parent)


def replace_together(folder: Path, contents: Mapping[str, Content], seal: str) -> None:
    """Replaces several files of `folder`, or leaves all as they were. The one named `seal` marks the set as complete.

    All are staged, in their order, before the first is moved, so a full disk changes nothing. A process killed between
    the moves leaves the folder without its seal.
    """
    with writing(folder), contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(staged(folder / name, content)) for name, content in contents.items()}
        (folder / seal).unlink(missing_ok=True)
        sync_folder(folder)
        for name in sorted(files, key=lambda name: name == seal):
            os.replace(files[name], folder / name)
        sync_folder(folder)


@contextlib.contextmanager
def staged(path: Path, content: Content) -> Iterator[Path]:
    """Writes `content`, synced, to a new file beside `path`, for the block to move there; otherwise it is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError in the block into a UserError with the reason why `path` can't be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}): make room or fix the permissions, then resume=true."
        ) from error


def append(path: Path, text: str) -> None:
    """Appends `text` to a file. On an error, such as a full disk, nothing is appended: the file ends in a whole
    line."""
    with writing(path):
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "ab") as file:
                file.write(text.encode())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def reserve_space(path: Path) -> None:
    """Reserves disk space for the whole size of a sparse file, so that a full disk shows before it is filled."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without this
                raise


def sync(path: Path) -> None:
    """Makes what was appended to a file last through a power cut."""
    with writing(path), open(path, "ab") as file:
        os.fsync(file.fileno())


def make_folder(path: Path) -> Path:
    """Makes the folder `path` with those above it, and returns it. Raises UserError if it can't be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be created ({error.strerror}): fix that, or give another runs_dir=.") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} can't be written to: fix its permissions, or give another runs_dir=.")
    return path


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal; it is read in pieces, so a large file takes no memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hashing:
    """A file for writing that counts and hashes its bytes; large pieces are hashed while they are written."""

    LARGE = 2**18  # bytes from which a second thread is worth starting

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Writes bytes or another buffer; returns their number."""
        view = memoryview(content)
        hashing = Thread(target=self.sha256.update, args=(view,)) if view.nbytes >= self.LARGE else None
        if hashing:
            hashing.start()
        try:
            self.file.write(view)
        except OSError as error:
            self.failure = error  # torch.save turns it into a RuntimeError that hides the cause
            raise
        finally:
            if hashing:
                hashing.join()  # the caller may change `content` once this returns
        if not hashing:
            self.sha256.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Flushes the file."""
        self.file.flush()

    @property
    def record(self) -> dict[str, Any]:
        """Size and SHA-256 of what was written, as plain data."""
        return {"size": self.size, "sha256": self.sha256.hexdigest()}


def write_recorded(path: Path, content: bytes | Callable[[Any], object]) -> None:
    """Writes `path` as `atomic_write` does, and PATH.json beside it with its size and SHA-256.

    The record is written first: a process killed between the two leaves a record without a file, which does no harm.
    """

    def write(file: BinaryIO) -> None:
        """Writes the content to the staged `file`, and the record beside `path`."""
        hashing = Hashing(file)
        try:
            if callable(content):
                content(hashing)
            else:
                hashing.write(content)
        except RuntimeError:
            if hashing.failure:
                raise hashing.failure from None
            raise
        atomic_write(record_of(path), json.dumps(hashing.record))

    atomic_write(path, write)


def has_its_size(path: Path) -> bool:
    """Whether a file has the size in its record; its bytes aren't read."""
    try:
        return path.stat().st_size == json.loads(record_of(path).read_text())["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def state_of(path: Path) -> tuple[str | int, ...]:
    """Name, size, times and inode of a file: they change when it is written to or replaced."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def record_of(path: Path) -> Path:
    """The file that records the size and hash of `path`."""
    return path.with_name(path.name + ".json")


def is_whole(path: Path) -> bool:
    """Whether a file has the size and the hash in its record."""
    try:
        expected = json.loads(record_of(path).read_text())
        return path.stat().st_size == expected["size"] and sha256_of(path) == expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Only one process at a time runs the block for `folder`; the others wait.

    The lock is the kernel's: it is released when the process that holds it ends, however it ends. On a file system
    without locks nobody waits, so the block must be safe to run in two processes at once.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
