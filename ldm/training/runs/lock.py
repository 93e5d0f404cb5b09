"""The lock of a run folder: one process at a time, recognised as stale when that process is gone."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError
from ldm.common.files import atomic_write, one_at_a_time

NAME = ".lock"


class Lock:
    """Holds `folder` for this process until `release`. Raises UserError if another process holds it.

    The lock is a file that names host, pid and the process's start. It is stale, and taken over, if it names this host
    and that process no longer runs (a later process with the same pid doesn't count), or if it is from an earlier start
    of the same SLURM job, which a requeue may have put on another host.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.mine = _identity()
        with one_at_a_time(folder):
            holder = read(folder)
            if holder and all(holder.get(key) == self.mine[key] for key in ("host", "pid", "started")):
                raise UserError(f"{folder} is already open in this process; close it first.")
            if holder and is_live(holder):
                raise UserError(
                    f"{folder} is in use by process {holder['pid']} on {holder['host']} since {holder['since']}; "
                    f"wait for it or use another name=. If that process is gone, delete {self.path}."
                )
            atomic_write(self.path, json.dumps(self.mine))

    def release(self) -> None:
        """Releases the folder, if this process still holds it."""
        if read(self.path.parent) == self.mine:
            self.path.unlink()


def read(folder: Path) -> dict[str, Any] | None:
    """The process that holds `folder`, as its lock describes it; None without a lock."""
    unknown = {"host": "an unknown host", "pid": 0, "since": "an unknown time"}
    try:
        return unknown | dict(json.loads((folder / NAME).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):  # a damaged lock doesn't tell who wrote it
        return unknown


def is_live(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock may still be running."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and holder.get("slurm_job") == job and holder.get("slurm_restart") != os.environ.get("SLURM_RESTART_COUNT"):
        return False
    if holder["host"] != socket.gethostname():
        return True
    started = _process_start(holder["pid"])
    return started is not None and started == holder.get("started", started)


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }


def _process_start(pid: int) -> str | None:
    """When a process of this host began, as the kernel counts it; "" if the system doesn't report it; None if the
    process doesn't run.

    A zombie, killed but not yet reaped by its parent, doesn't run.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if fields[0] == "Z" else fields[19]
