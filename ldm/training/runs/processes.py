"""What the processes of one run tell each other."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gathered(own: T) -> list[T]:
    """What each process gives, by rank, for all of them; called by all."""
    if not distributed.is_initialized():
        return [own]
    parts: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts  # type: ignore[return-value]
