"""Connections to the page's server that ask for nothing or don't read what they asked for: each has so long for it, and
there are so many of them, of one address and in all.

uvicorn ends a connection that is silent after an answer (`timeout_keep_alive`, 5 s), but not one that has sent nothing
yet, sends its first lines a byte at a time, or leaves an answer unread: even closing waits for that. Its
`limit_concurrency` would count them and refuse everybody else; here the one that has made no progress for the longest
gives way.
"""

import asyncio
import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What connections have to keep to. `trusted` are addresses (networks, "*" for all) of servers before this one,
    whose connections are those of many clients."""

    idle_s: float = 30.0  # for the first lines of a request, and while nothing of an answer is taken
    waiting: int = 128  # connections at a time that have no request in work
    each: int = 128  # connections at a time of one address
    most: int = 512  # connections at a time in all, with streams that are being read; systems allow some 1000 files
    trusted: str = ""


def bound(config: Any, **given: Any) -> None:
    """Has a uvicorn server of this config bound the connections that come from now on; `given` are `Limits`."""
    limits = Limits(**{"trusted": str(config.forwarded_allow_ips or ""), **given})
    config.http_protocol_class = bounded(config.http_protocol_class, limits)


def bounded(protocol: type, limits: Limits) -> type:
    """uvicorn's protocol, h11's or httptools', with bounds; a protocol object is one connection."""

    class Bounded(protocol):
        deadline: asyncio.TimerHandle | None = None
        progress_at = 0.0  # by the loop's clock
        unread = 0  # bytes that the client was to take then
        ended = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()
            make_room(self, limits)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not owes(self):
                self._progress()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if waits(self):
                self._expect()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._expect() if waits(self) else self._progress()

        def connection_lost(self, exc: Exception | None) -> None:
            self.ended = True
            self._settle()
            super().connection_lost(exc)

        def _progress(self) -> None:
            self.progress_at, self.unread = asyncio.get_running_loop().time(), unread(self)
            self._settle()

        def _settle(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def _expect(self) -> None:
            self._progress()
            self.deadline = asyncio.get_running_loop().call_later(limits.idle_s, self._look)

        def _look(self) -> None:
            """An answer that is being taken, however slowly, has time anew."""
            self._expect() if unread(self) < self.unread else end(self)

    return Bounded


def make_room(new: Any, limits: Limits) -> None:
    """Ends connections, those without progress first, until `new` is within bounds; itself where there is no other."""
    others = [one for one in new.connections if one is not new and not one.ended]
    idle = [one for one in others if waits(one)]
    if len(idle) >= limits.waiting:
        end(_last_of(idle, new))
    address = address_of(new)
    same = [one for one in others if not one.ended and address_of(one) == address]
    if len(same) >= limits.each and not is_trusted(address, limits.trusted):
        end(_last_of(same, new))
    left = [one for one in others if not one.ended]
    if len(left) >= limits.most:
        end(_last_of(left, new))


def waits(connection: Any) -> bool:
    """Whether no request of it is in work: none has come whole as far as its first lines, or all are answered."""
    return connection.cycle is None or connection.cycle.response_complete


def owes(connection: Any) -> bool:
    """Whether the next step is its client's: to ask, or to take what it asked for."""
    return waits(connection) or connection.flow.write_paused


def unread(connection: Any) -> int:
    """Bytes of answers that its client hasn't taken, with those that the system holds where it tells (not Windows)."""
    return connection.transport.get_write_buffer_size() + _queued(connection.transport.get_extra_info("socket"))


def _queued(line: Any) -> int:
    """Bytes in a socket's send queue: megabytes, which a slow client takes its time for."""
    try:
        import fcntl
        import termios

        return struct.unpack("i", fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except (ImportError, OSError, AttributeError, ValueError):
        return 0


def end(connection: Any) -> None:
    """Ends it, at once where an answer lies unread: closing would wait until that is taken."""
    connection.ended = True
    if connection.transport.get_write_buffer_size():
        connection.transport.abort()
    else:
        connection.transport.close()


def address_of(connection: Any) -> str:
    """Its client's address; of IPv6 the network of 64 bits, which is one client's."""
    address = connection.client[0] if connection.client else ""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    known = getattr(known, "ipv4_mapped", None) or known
    return (
        str(ipaddress.ip_network((int(known), 64), strict=False).network_address) if known.version == 6 else str(known)
    )


def is_trusted(address: str, trusted: str) -> bool:
    """Whether an address is one of a list with commas, which may hold networks, or is "*"."""
    named = [one.strip() for one in trusted.split(",")]
    return "*" in named or any(_holds(one, address) for one in named if one)


def _holds(network: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return network == address


def _last_of(connections: Iterable[Any], new: Any) -> Any:
    """The one that has made no progress for the longest, those first whose client's turn it is; `new` where none is."""
    return min(connections, key=lambda one: (not owes(one), one.progress_at), default=new)
