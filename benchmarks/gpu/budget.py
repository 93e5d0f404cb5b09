"""A budget of time: work that no longer fits isn't started, and its name is recorded."""

import time


class Budget:
    """`seconds` from now on."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self.cut: list[str] = []

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def fits(self, name: str, about: float = 0.0) -> bool:
        """Whether work of `about` so many seconds may start; if not, `name` is listed in `cut`."""
        if self.left > about:
            return True
        self.cut.append(name)
        return False
