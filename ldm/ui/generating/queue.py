"""One at a time, in the order in which they came."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock that nobody overtakes others at: a grid of a hundred images lets in whoever waits, after each of them."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, waits: Callable[[], None] = lambda: None, every_s: float = 0.1) -> Iterator[None]:
        """Has the turn within `with`. `waits` is called every `every_s` until then; what it raises ends the waiting."""
        mine = object()
        with self._moved:
            self._line.append(mine)
        try:
            while not self._is_first(mine, every_s):
                waits()
            yield
        finally:
            with self._moved:
                self._line.remove(mine)
                self._moved.notify_all()

    def _is_first(self, mine: object, within_s: float) -> bool:
        with self._moved:
            return self._moved.wait_for(lambda: self._line[0] is mine, within_s)
