"""What may reach the page's server: its own page and programs of this machine, with requests of a bounded size.

A browser lets any web page send requests to 127.0.0.1; it only keeps that page from reading the answer. So a request
that another page made is refused by what the browser says of it: `Sec-Fetch-Site`, and `Origin` against `Host`.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from ldm.ui.store import Shown

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
UPLOAD_BYTES = 64 * 2**20  # of one upload, all its files together
BODY_BYTES = 2**20  # of any other request
# What the page and gradio's clients post to. The rest of gradio's routes store recordings, blobs and more.
POSTED = (UPLOAD, "/login", *(f"{API}/{name}" for name in ("queue/join", "run/", "api/", "call/", "cancel", "reset")))
# What would change something though it is only read.
CLOSED = tuple(f"{API}/{name}" for name in ("deep_link", "proxy=", "run-history", "component_server"))
HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
Refusal = tuple[int, str]


class Guard:
    """ASGI middleware: answers what may not be asked itself, makes room for uploads, and forbids framing."""

    def __init__(self, app: App, shown: Shown):
        self.app, self.shown = app, shown
        self._coming = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no websocket
            return await send({"type": "websocket.close", "code": 1008})
        send = _hardened(send)
        refusal = foreign(scope) or closed(scope) or oversized(scope)
        if refusal:
            return await _answer(send, *refusal)
        if scope["path"].startswith(UPLOAD) and scope["method"] == "POST":
            return await self._upload(scope, receive, send)
        await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = int(_header(scope, b"content-length") or 0)
        if self._coming + size > self.shown.limit:
            return await _answer(send, 503, "too many uploads at a time; try again in a moment")
        self._coming += size
        try:
            await asyncio.to_thread(self.shown.trim, self._coming)
            await self.app(scope, receive, send)
        finally:
            self._coming -= size


def foreign(scope: Scope) -> Refusal | None:
    """Why a request is refused that another web page made; a link to the page itself may be followed."""
    site = _header(scope, b"sec-fetch-site") or "none"
    if site not in ("none", "same-origin") and not _follows_a_link(scope):
        return 403, "another web page made this request: it is refused"
    own = {_header(scope, name).lower() for name in (b"host", b"x-forwarded-host")}
    for origin in _headers(scope, b"origin"):
        if _host(origin) not in own - {""}:
            return 403, f"a page of {origin} made this request: it is refused"
    return None


def closed(scope: Scope) -> Refusal | None:
    """Why a request is refused that the page has no use for."""
    method, path = scope["method"], scope["path"]
    reads = method in ("GET", "HEAD", "OPTIONS")
    if path.startswith(CLOSED) or not (reads or (method == "POST" and path.startswith(POSTED))):
        return 404, "the page doesn't serve this"
    return None


def oversized(scope: Scope) -> Refusal | None:
    """Why a request is refused whose body is too large, or doesn't say how large it is."""
    length, chunked = _header(scope, b"content-length"), _header(scope, b"transfer-encoding")
    if scope["method"] != "POST" and not length and not chunked:
        return None
    if chunked or not length.isdecimal():  # of both, the length is the one that isn't kept to
        return 411, "the request has to say its length"
    most = UPLOAD_BYTES if scope["path"].startswith(UPLOAD) else BODY_BYTES
    return (413, f"the request is larger than {most // 2**20} MB") if int(length) > most else None


def _follows_a_link(scope: Scope) -> bool:
    navigates = _header(scope, b"sec-fetch-mode") == "navigate" and _header(scope, b"sec-fetch-dest") == "document"
    return navigates and scope["method"] == "GET" and scope["path"] == "/"


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> str:
    """The values of a header, as one text where it is given more than once."""
    return ", ".join(_headers(scope, name))


def _hardened(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
