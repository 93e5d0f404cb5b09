"""Connections to the page's server that ask for nothing: each has so long to send a request's first lines, and all of
them together are so many.

uvicorn ends a connection that is silent after an answer (`timeout_keep_alive`, 5 s), but not one that has sent nothing
yet, or sends its first lines a byte at a time. Its `limit_concurrency` would count them and refuse everybody else; here
the one that has waited for the longest gives way.
"""

import asyncio
from typing import Any

HEAD_S = 30.0  # for the first lines of a request, from the connection's start or the answer before
WAITING = 128  # connections at a time that have no request in work
OPEN = 512  # connections at a time in all, with streams that are being read; systems allow some 1000 open files


def bound(config: Any, head_s: float = HEAD_S, waiting: int = WAITING, most: int = OPEN) -> None:
    """Has a uvicorn server of this config bound the connections that come from now on."""
    config.http_protocol_class = bounded(config.http_protocol_class, head_s, waiting, most)


def bounded(protocol: type, head_s: float, waiting: int, most: int) -> type:
    """uvicorn's protocol, h11's or httptools', with bounds; a protocol object is one connection."""

    class Bounded(protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            idle = [one for one in self.connections if one is not self and _waits(one)]
            if len(self.connections) > most or len(idle) >= waiting:
                _close(min(idle, key=_end_of, default=self))
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not _waits(self):
                self._unexpect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if _waits(self):
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unexpect()
            super().connection_lost(exc)

        def _expect(self) -> None:
            self._unexpect()
            self.deadline = asyncio.get_running_loop().call_later(head_s, _close, self)

        def _unexpect(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    return Bounded


def _waits(connection: Any) -> bool:
    """Whether no request of it is in work: none has come whole as far as its first lines, or all are answered."""
    return connection.cycle is None or connection.cycle.response_complete


def _end_of(connection: Any) -> float:
    """When its time is over: the least of the one that has waited for the longest."""
    deadline = getattr(connection, "deadline", None)
    return 0.0 if deadline is None else deadline.when()


def _close(connection: Any) -> None:
    if not connection.transport.is_closing():
        connection.transport.close()
