"""Admits requests of the page itself and of programs, within bounds of size, and refuses all others.

A browser lets any web page send requests to 127.0.0.1; it only keeps that page from reading the answer. Requests of
other pages are therefore refused by the headers that the browser sets: `Sec-Fetch-Site`, and `Origin`, which has to be
the page's own. Headers that name a server before this one (`X-Forwarded-Host` and the like) are removed: any client
can write them.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from ldm.ui.generating.page_store import ServedFiles
from ldm.ui.server.addresses import client_of
from ldm.ui.server.bodies import Bodies, Message, Receive, Refusal, Scope, Send
from ldm.ui.server.logins import Logins, is_attempt, refuse_unknown

log = logging.getLogger(__name__)
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
UPLOAD_BYTES = 64 * 2**20  # of all files of an upload together
BODY_BYTES = 2**20  # of any other request
BY_NAME = f"{API}/call/v2/"
# The routes that the page and gradio's clients post to. Others of gradio's store recordings, blobs and more.
POSTED = (UPLOAD, "/login", *(f"{API}/{name}" for name in ("queue/join", "run/", "api/", "call/", "cancel", "reset")))
# Routes that change something though they are read with GET, and those for developers: descriptions of all routes, an
# endless stream, histories and statistics of all visitors.
CLOSED = (
    *(f"{API}/{name}" for name in ("deep_link", "proxy=", "run-history", "component_server", "dev/", "runs")),
    *(f"{prefix}/{name}" for prefix in ("", API) for name in ("openapi.json", "docs", "redoc", "monitoring")),
    *(f"{API}/{name}" for name in ("profiling", "vibe-")),
)
# Routes that end or keep alive a visitor's work, for which gradio requires no login.
OF_VISITORS = tuple(f"{API}/{name}" for name in ("cancel", "reset", "heartbeat", "stream"))
RANGE = re.compile(rb"bytes=(\d{1,18}-(\d{1,18})?|-\d{1,18})")
HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware: refuses requests, bounds what is received and stored, and forbids framing.

    `proxy` is the origin at which a server before this one is reached; without it, the page's own is that of `Host`.
    """

    def __init__(self, app: ASGIApp, served_files: ServedFiles, bodies: Bodies, proxy: str | None = None):
        self.app, self.served_files, self.bodies, self.proxy = app, served_files, bodies, proxy
        self.logins = Logins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no websocket
            return await send({"type": "websocket.close", "code": 1008})
        if not _headers(scope, b"host"):
            scope["headers"].append((b"host", b""))  # gradio, outside of this, reads it whenever there is an Origin
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _is_kept(name, value)]}
        send = _hardened(send)
        refusal = refuse_foreign(scope, self.proxy) or refuse_closed(scope) or refuse_oversized(scope)
        refusal = refusal or refuse_unknown(scope, "; ".join(_headers(scope, b"cookie")), OF_VISITORS)
        if is_attempt(scope) and not refusal:
            client = client_of(scope.get("client"))
            refusal, send = self.logins.refusal(client), self.logins.watched(client, send)
        if refusal:
            return await _refuse(send, *refusal)
        if scope["method"] == "POST":
            await self._receive(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app answer.

        A stream that ends in a refusal has already reported it, and is ended without a traceback.
        """
        started = False

        async def answer(message: Message) -> None:
            """Sends, and notes that the answer has started."""
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except RuntimeError as error:  # raised by Starlette, which can't send a refusal any more
            if not started or type(error.__cause__).__name__ != "HTTPException":
                raise
            await send({"type": "http.response.body", "body": b""})

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app receive a request's body, and answers in its place if the body is given up."""
        is_upload = scope["path"].startswith(UPLOAD)
        body = self.bodies.open(client_of(scope.get("client")), receive)
        started = False

        async def answer(message: Message) -> None:
            """Sends the answer unless the body has been refused; after an upload, trims the folder of uploads first."""
            nonlocal started
            if body.refusal and not started:
                return
            if is_upload and not started:  # before the client learns that it may send the next one
                await asyncio.to_thread(self.served_files.trim)
            started = True
            await send(message)

        try:
            await self.app(scope, body.receive, answer)
        except Exception as error:
            refusal = body.refusal or (_failed(error) if is_upload else refuse_misread(error, scope["path"]))
            if refusal is None or (started and not body.refusal):
                raise
            body.refusal = refusal
        finally:
            self.bodies.close(body)
        if body.refusal and not started:
            await _refuse(send, *body.refusal)


def refuse_foreign(scope: Scope, proxy: str | None = None) -> Refusal | None:
    """The refusal of a request that another web page made, if it is one; links to the page itself may be followed."""
    site = _header(scope, b"sec-fetch-site") or "none"
    if site not in ("none", "same-origin") and not _follows_a_link(scope):
        return 403, "another web page made this request, so it is refused"
    host = _header(scope, b"host").lower()
    own = proxy or (host and f"http://{host}")  # scheme, name and port, and nothing else
    for origin in _headers(scope, b"origin"):
        if origin.lower() != own or not own:
            return 403, f"a page of {origin} made this request, so it is refused"
    return None


def refuse_closed(scope: Scope) -> Refusal | None:
    """The refusal of a request for which the page has no use, if it is one."""
    method, path = scope["method"], scope["path"]
    reads = method in ("GET", "HEAD", "OPTIONS")
    is_plain = path.startswith("/")  # not a whole address, as proxies get it, of which the app reads a part
    if not is_plain or path.startswith(CLOSED) or not (reads or (method == "POST" and path.startswith(POSTED))):
        return 404, "the page doesn't serve this"
    return None


def refuse_oversized(scope: Scope) -> Refusal | None:
    """The refusal of a request whose body is too large or of unknown length, if it is one."""
    length, chunked = _header(scope, b"content-length"), _header(scope, b"transfer-encoding")
    if scope["method"] != "POST" and not length and not chunked:
        return None
    if chunked or not length.isdecimal():  # if both are given, the length doesn't hold
        return 411, "the request has to declare its length"
    most = UPLOAD_BYTES if scope["path"].startswith(UPLOAD) else BODY_BYTES
    return (413, f"the request is larger than {most // 2**20} MB") if int(length) > most else None


def refuse_misread(error: Exception, path: str) -> Refusal | None:
    """The refusal for an error of gradio's that a wrong request causes, if it is one: it names an unknown function, or
    gives invalid values."""
    if type(error).__name__ in ("KeyError", "FnIndexInferError"):
        return 404, "the page has no such function"
    if isinstance(error, TypeError) and path.startswith(BY_NAME):
        return 400, "give values by parameter name, for all parameters without a default"
    if isinstance(error, ValueError):  # also if the answer would repeat an invalid value
        log.warning("a request can't be read: %s: %.200s", type(error).__name__, error)
        return (
            400,
            "the request can't be read: send JSON of finite numbers and valid characters, as /gradio_api/info says",
        )
    return None


def _follows_a_link(scope: Scope) -> bool:
    navigates = _header(scope, b"sec-fetch-mode") == "navigate" and _header(scope, b"sec-fetch-dest") == "document"
    return navigates and scope["method"] == "GET" and scope["path"] == "/"


def _is_kept(header: bytes, value: bytes) -> bool:
    """Whether a header is passed on: not those that name another server, nor an invalid range (RFC 9110, 14.2)."""
    is_forwarded = header in (b"forwarded", b"x-gradio-server") or header.startswith(b"x-forwarded-")
    return not is_forwarded and (header != b"range" or bool(RANGE.fullmatch(value)))


def _failed(error: Exception) -> Refusal:
    """The refusal of an upload that caused an error of the server."""
    log.warning("an upload failed: %s: %s", type(error).__name__, error)
    if isinstance(error, OSError):
        return 507, f"the upload can't be stored ({error.strerror or type(error).__name__})"
    return 400, "the upload can't be read: send multipart/form-data whose parts are files named `files`"


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> str:
    """The value of a header; if it is given more than once, all of them, separated by commas."""
    return ", ".join(_headers(scope, name))


def _hardened(send: Send) -> Send:
    """`send` with HEADERS added to the answer."""

    async def sent(message: Message) -> None:
        """Sends `message`, with HEADERS if it starts the answer."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
