"""What may reach the page's server: its own page and programs of this machine, with requests of a bounded size.

A browser lets any web page send requests to 127.0.0.1; it only keeps that page from reading the answer. So a request
that another page made is refused by what the browser says of it: `Sec-Fetch-Site`, and `Origin`, which has to be the
page's own. What a request says of another server before this one (`X-Forwarded-Host` and the like) is taken away: any
client can write it.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from ldm.ui.generating.store import Shown
from ldm.ui.server.bodies import Bodies, Message, Receive, Refusal, Scope, Send
from ldm.ui.server.logins import Logins, is_attempt, unknown

log = logging.getLogger(__name__)
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
UPLOAD_BYTES = 64 * 2**20  # of one upload, all its files together
BODY_BYTES = 2**20  # of any other request
BY_NAME = f"{API}/call/v2/"
# What the page and gradio's clients post to. The rest of gradio's routes store recordings, blobs and more.
POSTED = (UPLOAD, "/login", *(f"{API}/{name}" for name in ("queue/join", "run/", "api/", "call/", "cancel", "reset")))
# What would change something though it is only read, and what is for those who write pages: descriptions of all
# routes, a stream without an end, histories and figures of all visitors.
CLOSED = (
    *(f"{API}/{name}" for name in ("deep_link", "proxy=", "run-history", "component_server", "dev/", "runs")),
    *(f"{prefix}/{name}" for prefix in ("", API) for name in ("openapi.json", "docs", "redoc", "monitoring")),
    *(f"{API}/{name}" for name in ("profiling", "vibe-")),
)
# What ends or keeps alive the work of a visitor, and for which gradio asks no login.
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
    """ASGI middleware: answers what may not be asked itself, bounds what is received and stored, and forbids framing.

    `proxy` is the origin that a server before this one is reached at; without it, the page's own is that of the `Host`.
    """

    def __init__(self, app: App, shown: Shown, bodies: Bodies, proxy: str | None = None):
        self.app, self.shown, self.bodies, self.proxy = app, shown, bodies, proxy
        self.logins = Logins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no websocket
            return await send({"type": "websocket.close", "code": 1008})
        if not _headers(scope, b"host"):
            scope["headers"].append((b"host", b""))  # gradio, around this, looks it up whenever there is an Origin
        scope = {**scope, "headers": [one for one in scope["headers"] if _is_read(*one)]}
        send = _hardened(send)
        refusal = foreign(scope, self.proxy) or closed(scope) or oversized(scope)
        refusal = refusal or unknown(scope, "; ".join(_headers(scope, b"cookie")), OF_VISITORS)
        if is_attempt(scope) and not refusal:
            client = (scope.get("client") or ("",))[0]
            refusal, send = self.logins.refusal(client), self.logins.watched(client, send)
        if refusal:
            return await _answer(send, *refusal)
        await (self._take if scope["method"] == "POST" else self._give)(scope, receive, send)

    async def _give(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app answer. A stream that ends in a refusal, which it tells by itself, is ended without a trace."""
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except RuntimeError as error:  # Starlette's, who can't send a refusal any more
            if not started or type(error.__cause__).__name__ != "HTTPException":
                raise
            await send({"type": "http.response.body", "body": b""})

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app have a request's body as it comes, and answers in its place where the body is given up."""
        is_upload, client = scope["path"].startswith(UPLOAD), scope.get("client") or ("",)
        body = self.bodies.open(client[0], receive)
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if body.refusal and not started:
                return
            if is_upload and not started:  # before the client knows that it may send the next one
                await asyncio.to_thread(self.shown.trim)
            started = True
            await send(message)

        try:
            await self.app(scope, body.receive, answer)
        except Exception as error:
            refusal = body.refusal or (_failed(error) if is_upload else misread(error, scope["path"]))
            if refusal is None or (started and not body.refusal):
                raise
            body.refusal = refusal
        finally:
            self.bodies.close(body)
        if body.refusal and not started:
            await _answer(send, *body.refusal)


def foreign(scope: Scope, proxy: str | None = None) -> Refusal | None:
    """Why a request is refused that another web page made; a link to the page itself may be followed."""
    site = _header(scope, b"sec-fetch-site") or "none"
    if site not in ("none", "same-origin") and not _follows_a_link(scope):
        return 403, "another web page made this request: it is refused"
    host = _header(scope, b"host").lower()
    own = proxy or (host and f"http://{host}")  # scheme, name and port, and nothing else
    for origin in _headers(scope, b"origin"):
        if origin.lower() != own or not own:
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


def misread(error: Exception, path: str) -> Refusal | None:
    """What gradio fails over when a request names no function of the page, or gives it what it can't take."""
    if type(error).__name__ in ("KeyError", "FnIndexInferError"):
        return 404, "the page has no such function"
    if isinstance(error, TypeError) and path.startswith(BY_NAME):
        return 400, "the function's values have to be given by the names of its parameters, all that have no default"
    if isinstance(error, ValueError):  # also where the refusal would repeat what was sent
        log.warning("a request can't be read: %s: %.200s", type(error).__name__, error)
        return 400, "the request can't be read: send JSON of finite numbers and whole letters, as /gradio_api/info says"
    return None


def _follows_a_link(scope: Scope) -> bool:
    navigates = _header(scope, b"sec-fetch-mode") == "navigate" and _header(scope, b"sec-fetch-dest") == "document"
    return navigates and scope["method"] == "GET" and scope["path"] == "/"


def _is_read(header: bytes, value: bytes) -> bool:
    """Whether a header counts: not what others say of another server, nor a range that isn't one (RFC 9110, 14.2)."""
    is_forwarded = header in (b"forwarded", b"x-gradio-server") or header.startswith(b"x-forwarded-")
    return not is_forwarded and (header != b"range" or bool(RANGE.fullmatch(value)))


def _failed(error: Exception) -> Refusal:
    """What a client is told of an upload that ended in an error of the server's."""
    log.warning("an upload failed: %s: %s", type(error).__name__, error)
    if isinstance(error, OSError):
        return 507, f"the upload can't be stored ({error.strerror or type(error).__name__})"
    return 400, "the upload can't be read: send multipart/form-data whose parts are files, each by the name `files`"


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> str:
    """The values of a header, as one text where it is given more than once."""
    return ", ".join(_headers(scope, name))


def _hardened(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
