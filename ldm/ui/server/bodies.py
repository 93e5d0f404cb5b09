"""The bodies of requests while they arrive: counted by the bytes received, and dropped when no more arrive.

The length that a request declares reserves nothing. If too much is arriving at a time, the body that has been silent
for the longest is dropped, so that connections that send next to nothing don't keep others out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]  # status and sentence

IDLE_S = 30.0  # seconds without a byte until an incomplete body is given up
EACH = 32  # incomplete bodies at a time from one client
MANY: Refusal = (503, "too many uploads at a time: try again in a moment")


class Bodies:
    """All bodies that are arriving or in use, with at most `most()` bytes together."""

    def __init__(self, most: Callable[[], int], idle_s: float = IDLE_S, each: int = EACH):
        self.most, self.idle_s, self.each = most, idle_s, each
        self._open: set[Body] = set()

    def open(self, client: str, receive: Receive) -> "Body":
        """A new body; the client's most silent one gives way if it has too many."""
        mine = [body for body in self._open if body.client == client and not body.whole]
        if len(mine) >= self.each:
            self._end(_most_silent(mine))
        body = Body(self, client, receive)
        self._open.add(body)
        return body

    def close(self, body: "Body") -> None:
        """Stops counting a body."""
        self._open.discard(body)

    def make_room(self, body: "Body") -> None:
        """Drops other bodies, the most silent first, and at last `body` itself, until the rest is within the bound."""
        while sum(one.arrived for one in self._open) > self.most() and body in self._open:
            others = [one for one in self._open if one is not body and not one.whole]
            self._end(_most_silent(others) if others else body)

    def _end(self, body: "Body") -> None:
        self._open.discard(body)
        body.end(MANY)


class Body:
    """A request's body. `receive` raises once there is a `refusal`, which is then the answer."""

    def __init__(self, bodies: Bodies, client: str, receive: Receive):
        self.client = client
        self.arrived, self.whole, self.heard = 0, False, time.monotonic()
        self.refusal: Refusal | None = None
        self._bodies, self._receive = bodies, receive
        self._timer: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """The next message. Raises MultiPartException, on which gradio removes what it has stored."""
        from starlette.formparsers import MultiPartException

        message: Message = {}
        if self.whole:
            return await self._receive()
        if self.refusal is None:
            message = await self._next()
        if self.refusal:
            raise MultiPartException(self.refusal[1])
        return message

    def end(self, refusal: Refusal) -> None:
        """Drops the body, even while its next message is awaited."""
        self.refusal = self.refusal or refusal
        if self._timer and not self._timer.expired():
            self._timer.reschedule(asyncio.get_running_loop().time())

    async def _next(self) -> Message:
        idle_s = self._bodies.idle_s
        try:
            async with asyncio.timeout(idle_s) as self._timer:
                message = await self._receive()
        except TimeoutError:
            self.end((408, f"no data of the request arrived for {idle_s:g} s"))
            return {}
        finally:
            self._timer = None
        if message["type"] == "http.disconnect":
            self.end((400, "the connection was closed before the whole request had arrived"))
        self._count(len(message.get("body", b"")))
        self.whole = not message.get("more_body", False)
        return message

    def _count(self, arrived: int) -> None:
        if arrived:
            self.heard = time.monotonic()
            self.arrived += arrived
            self._bodies.make_room(self)


def _most_silent(bodies: Iterable[Body]) -> Body:
    return min(bodies, key=lambda body: body.heard)
