"""The bodies of requests while they arrive: counted by the bytes that have come, and ended when no more come.

What a request says of its length reserves nothing. Where too much is arriving at a time, the body that has been silent
for the longest gives way, so that connections that send nothing, or hardly anything, keep nobody else out.
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

IDLE_S = 30.0  # without a byte, until a body that isn't complete is given up
EACH = 32  # incomplete bodies of one client at a time
MANY: Refusal = (503, "too many uploads at a time; try again in a moment")


class Bodies:
    """All bodies that are arriving or in use, of at most `most()` bytes together."""

    def __init__(self, most: Callable[[], int], idle_s: float = IDLE_S, each: int = EACH):
        self.most, self.idle_s, self.each = most, idle_s, each
        self._held: set[Body] = set()

    def open(self, client: str, receive: Receive) -> "Body":
        mine = [body for body in self._held if body.client == client and not body.whole]
        if len(mine) >= self.each:
            self._end(_most_silent(mine))
        body = Body(self, client, receive)
        self._held.add(body)
        return body

    def close(self, body: "Body") -> None:
        self._held.discard(body)

    def make_room(self, body: "Body") -> None:
        """Ends others, the most silent first, and at last `body` itself, until all that has come is within bounds."""
        while sum(one.arrived for one in self._held) > self.most() and body in self._held:
            others = [one for one in self._held if one is not body and not one.whole]
            self._end(_most_silent(others) if others else body)

    def _end(self, body: "Body") -> None:
        self._held.discard(body)
        body.end(MANY)


class Body:
    """One request's body. `receive` raises once there is a `refusal`, to be answered in place of the app's answer."""

    def __init__(self, bodies: Bodies, client: str, receive: Receive):
        self.client = client
        self.arrived, self.whole, self.heard = 0, False, time.monotonic()
        self.refusal: Refusal | None = None
        self._bodies, self._receive = bodies, receive
        self._timer: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """The next message. Raises MultiPartException, for which gradio takes away what it has stored by then."""
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
        """Gives the body up, also while it is being waited for."""
        self.refusal = self.refusal or refusal
        if self._timer and not self._timer.expired():
            self._timer.reschedule(asyncio.get_running_loop().time())

    async def _next(self) -> Message:
        idle_s = self._bodies.idle_s
        try:
            async with asyncio.timeout(idle_s) as self._timer:
                message = await self._receive()
        except TimeoutError:
            self.end((408, f"nothing came of the request for {idle_s:g} s"))
            return {}
        finally:
            self._timer = None
        if message["type"] == "http.disconnect":
            self.end((400, "the connection was closed before all of the request had come"))
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
