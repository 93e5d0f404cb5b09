"""One request at a time, in the order in which they came."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is granted first come, first served: a grid of a hundred images lets others in between its images."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, on_wait: Callable[[int], None] = lambda ahead: None, every_s: float = 0.1) -> Iterator[None]:
        """Holds the turn within `with`. Until it comes, `on_wait` is called every `every_s` seconds with the number of
        those ahead; an exception that it raises ends the waiting."""
        mine = object()
        with self._moved:
            self._line.append(mine)
        try:
            while not self._is_first(mine, every_s):
                on_wait(self._ahead(mine))
            yield
        finally:
            with self._moved:
                self._line.remove(mine)
                self._moved.notify_all()

    def __len__(self) -> int:
        return len(self._line)

    def _ahead(self, mine: object) -> int:
        with self._moved:
            return self._line.index(mine)

    def _is_first(self, mine: object, within_s: float) -> bool:
        with self._moved:
            return self._moved.wait_for(lambda: self._line[0] is mine, within_s)
