"""Work in pieces that processes share: each takes the next free piece, without knowing of the others."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def share(
    folder: Path,
    pieces: Sequence[str],
    do: Callable[[str], None],
    needless: Callable[[], bool],
    poll_seconds: float = 0.2,
) -> None:
    """Does every piece once among all processes that call this with the same folder. Returns when all are done, or when
    the work has become `needless`, since another process has joined the pieces.

    A piece is done when the file NAME.done exists in `folder`. A piece in progress is held by the kernel's lock on
    NAME.lock, which ends with the process: if one is killed, another process or the next call takes up its piece.
    """
    while not needless() and (left := [piece for piece in pieces if not is_done(folder, piece)]):
        worked = False
        for piece in left:
            with _lock(folder / f"{piece}.lock") as is_mine:
                if is_mine and not is_done(folder, piece):
                    do(piece)
                    (folder / f"{piece}.done").touch()
                    worked = True
        if not worked:
            time.sleep(poll_seconds)


def is_done(folder: Path, piece: str) -> bool:
    """Whether a piece is done."""
    return (folder / f"{piece}.done").exists()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process has the lock now. On file systems without locks every process has it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:  # the folder is gone: another process has finished the work
        yield False
        return
    try:
        is_mine = True
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
        except (ImportError, OSError):
            pass
        yield is_mine
    finally:
        os.close(handle)
