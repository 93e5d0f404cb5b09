"""The rank of this process in a distributed run, known from environment variables before the processes connect."""

import os


def rank() -> int:
    """0 for the only or the first process, as torchrun, SLURM or Lightning's launcher number them.

    Lightning's launcher sets no global rank on several machines: there the result is only 0 for the first process and
    another number for the others, by NODE_RANK.
    """
    if (value := _number("RANK")) is not None:
        return value
    local, node = _number("LOCAL_RANK"), _number("NODE_RANK")
    if local is not None or node is not None:
        return (node or 0) + (local or 0)
    return _number("SLURM_PROCID") or 0


def local_rank() -> int:
    """The process's number on its own machine, from 0."""
    local = _number("LOCAL_RANK")
    return local if local is not None else _number("SLURM_LOCALID") or 0


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else None
