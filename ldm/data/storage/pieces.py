"""Work in pieces that processes share, whoever comes first: no process need know of the others, or their number."""

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
    """Does every piece once, among all processes that call this with the same folder; returns when all are done, or
    when the whole became `needless`, since another process has put the pieces together.

    A piece is done when the file NAME.done is in `folder`. One that a process has in hand is held by the kernel's lock
    on NAME.lock, which ends with the process: a killed one's piece is taken up by another, or by the next call.
    """
    while not needless() and (left := [piece for piece in pieces if not is_done(folder, piece)]):
        worked = False
        for piece in left:
            with _held(folder / f"{piece}.lock") as mine:
                if mine and not is_done(folder, piece):
                    do(piece)
                    (folder / f"{piece}.done").touch()
                    worked = True
        if not worked:
            time.sleep(poll_seconds)


def is_done(folder: Path, piece: str) -> bool:
    return (folder / f"{piece}.done").exists()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether this process has the lock now; where the file system has no locks, everyone has it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:  # the folder is gone: another process has finished the whole
        yield False
        return
    try:
        mine = True
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
        except (ImportError, OSError):
            pass
        yield mine
    finally:
        os.close(handle)
