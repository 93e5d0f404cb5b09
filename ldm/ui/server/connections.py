"""Bounds for connections that ask for nothing or don't read their answers: in time, and in number.

uvicorn closes a connection that is silent after an answer (`timeout_keep_alive`, 5 s), but not one that has sent
nothing yet, that sends its first lines a byte at a time, or that leaves an answer unread: even closing waits for that.
Its `limit_concurrency` would count them and refuse everybody else; here the connection that has made no progress for
the longest gives way.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ldm.ui.server.addresses import client_of, is_trusted


@dataclass(frozen=True)
class Limits:
    """Bounds of connections. `trusted` lists addresses of servers before this one (networks, or "*" for all), whose
    connections are those of many clients."""

    idle_s: float = 30.0  # for the first lines of a request, and while nothing of an answer is read
    waiting: int = 128  # connections at a time without a request that is being answered
    each: int = 128  # connections at a time from one address
    most: int = 512  # connections at a time in all, with streams that are being read; systems allow some 1000 files
    trusted: str = ""


def limit_connections(config: Any, **given: Any) -> None:
    """Bounds the future connections of the uvicorn server with this config; `given` are values of `Limits`."""
    limits = Limits(**{"trusted": str(config.forwarded_allow_ips or ""), **given})
    config.http_protocol_class = _bounded_protocol(config.http_protocol_class, limits)


def _bounded_protocol(protocol: type, limits: Limits) -> type:
    """uvicorn's protocol, h11's or httptools', with our bounds instead of any that it had. Each instance is one
    connection."""
    unbounded = getattr(protocol, "unbounded", protocol)
    return type("BoundedProtocol", (_Bounds, unbounded), {"limits": limits, "unbounded": unbounded})


class _Bounds(asyncio.Protocol):
    """A mixin before uvicorn's protocol: a deadline whenever it is the client's turn, and room for other
    connections."""

    limits: Limits
    deadline: asyncio.TimerHandle | None = None
    progress_at = 0.0  # by the loop's clock
    unread = 0  # bytes that the client hadn't read then
    ended = False

    def connection_made(self, transport: Any) -> None:
        """Starts the deadline for a first request, and closes connections beyond the bounds."""
        noting: Any = _Noting(transport, self.note_written)
        super().connection_made(noting)
        self._expect_progress()
        make_room(self, self.limits)

    def data_received(self, data: bytes) -> None:
        """Notes received data as progress, if a request or an upload is being read."""
        super().data_received(data)
        if not _awaits_client(self):
            self._note_progress()

    def note_written(self) -> None:
        """More of an answer is about to be sent: that is progress if the client has taken all that came before. So a
        stream that is being read doesn't give way to newer ones in which nothing happens."""
        if not _awaits_client(self) and not _unread_bytes(self):
            self._note_progress()

    def on_response_complete(self) -> None:
        """Starts the deadline for the next request."""
        super().on_response_complete()  # type: ignore[misc]
        if _is_idle(self):
            self._expect_progress()

    def pause_writing(self) -> None:
        """Starts the deadline for the client to read more of the answer."""
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        """The client has read: restarts or ends the deadline."""
        super().resume_writing()
        if _is_idle(self):
            self._expect_progress()
        else:
            self._note_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the deadline."""
        self.ended = True
        self._cancel_deadline()
        super().connection_lost(exc)

    def _note_progress(self) -> None:
        self.progress_at, self.unread = asyncio.get_running_loop().time(), _unread_bytes(self)
        self._cancel_deadline()

    def _cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _expect_progress(self) -> None:
        self._note_progress()
        self.deadline = asyncio.get_running_loop().call_later(self.limits.idle_s, self._check_progress)

    def _check_progress(self) -> None:
        """Ends the connection, unless its answer is being read, however slowly: then the time starts again."""
        if _unread_bytes(self) < self.unread:
            self._expect_progress()
        else:
            _end(self)


class _Noting:
    """A transport that calls `note` before each write."""

    def __init__(self, transport: Any, note: Callable[[], None]):
        self._transport, self._note = transport, note

    def write(self, data: bytes) -> None:
        """Calls `note`, then writes."""
        self._note()
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def make_room(new: Any, limits: Limits) -> None:
    """Ends connections until `new` is within the bounds: those without progress first, `new` if there is no other."""
    others = [one for one in new.connections if one is not new and not one.ended]
    idle = [one for one in others if _is_idle(one)]
    if len(idle) >= limits.waiting:
        _end(_least_active(idle, new))
    client = _client_of(new)
    same = [one for one in others if not one.ended and _client_of(one) == client]
    if len(same) >= limits.each and not is_trusted(client, limits.trusted):
        _end(_least_active(same, new))
    left = [one for one in others if not one.ended]
    if len(left) >= limits.most:
        _end(_least_active(left, new))


def _is_idle(connection: Any) -> bool:
    """Whether no request is being answered: none has arrived with all its headers, or all are answered."""
    return connection.cycle is None or connection.cycle.response_complete


def _awaits_client(connection: Any) -> bool:
    """Whether it is the client's turn: to send a request, or to read the answer."""
    return _is_idle(connection) or connection.flow.write_paused


def _unread_bytes(connection: Any) -> int:
    """Bytes of answers that the client hasn't read, including those in the system's queue if the system reports it
    (Windows doesn't)."""
    return connection.transport.get_write_buffer_size() + _queued(connection.transport.get_extra_info("socket"))


def _queued(line: Any) -> int:
    """Bytes in a socket's send queue: it may hold megabytes, which take a slow client a while."""
    try:
        import fcntl
        import termios

        return struct.unpack("i", fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except (ImportError, OSError, AttributeError, ValueError):
        return 0


def _end(connection: Any) -> None:
    """Ends a connection, at once if an answer is unread: closing would wait until it is read."""
    connection.ended = True
    if connection.transport.get_write_buffer_size():
        connection.transport.abort()
    else:
        connection.transport.close()


def _client_of(connection: Any) -> str:
    return client_of(connection.client)


def _least_active(connections: Iterable[Any], new: Any) -> Any:
    """The connection that has made no progress for the longest time, preferably one that waits for its client; `new` if
    there is none."""
    return min(connections, key=lambda one: (not _awaits_client(one), one.progress_at), default=new)
