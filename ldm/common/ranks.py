"""Which of the processes of a distributed run this one is, known before they have met."""

import os


def rank() -> int:
    """0 for the only process or the first one, as torchrun, SLURM or Lightning's launcher number them.

    With Lightning's launcher on several machines, those of the others are only told from the first, by NODE_RANK.
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
