"""Values that the processes of one run exchange."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gathered(own: T) -> list[T]:
    """Each process's value, by rank, in all of them. All processes call it."""
    if not distributed.is_initialized():
        return [own]
    parts: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts  # type: ignore[return-value]
