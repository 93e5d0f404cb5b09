"""Which requests need a login, and how often a client may try a password."""

import math
import time
from collections.abc import Callable
from typing import Any

from ldm.ui.server.bodies import Message, Refusal, Scope, Send

PATH = "/login"
FREE = 5  # wrong passwords of a client in a row without a wait
LONGEST_S = 60.0
FORGOTTEN_S = 600.0  # since the last attempt
CLIENTS = 10_000  # that are remembered at a time


class Logins:
    """Attempts by client. From the sixth wrong password in a row on, the next has to wait 1, 2, 4, ... seconds, up
    to a minute. An attempt counts as wrong from its start, so that many at once don't evade this."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._wrong: dict[str, tuple[int, float]] = {}  # how many in a row, and when the next may be made

    def refusal(self, client: str) -> Refusal | None:
        """The refusal of an attempt; if None, the attempt is counted."""
        now = self.clock()
        count, until = self._wrong.pop(client, (0, 0.0))
        if now - until > FORGOTTEN_S:
            count = 0
        if count > FREE and now < until:
            self._wrong[client] = count, until
            return 429, f"too many wrong passwords: try again in {math.ceil(until - now)} s"
        wait = min(2.0 ** min(count - FREE, 16), LONGEST_S) if count >= FREE else 0.0
        self._wrong[client] = count + 1, now + wait
        if len(self._wrong) > CLIENTS:
            self._wrong.pop(next(iter(self._wrong)))  # the one with the oldest last attempt
        return None

    def watched(self, client: str, send: Send) -> Send:
        """`send` for the answer to an attempt; an answer of success clears the client's wrong passwords."""

        async def sent(message: Message) -> None:
            """Sends, and forgets the client's failed logins once one has succeeded."""
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._wrong.pop(client, None)
            await send(message)

        return sent


def is_attempt(scope: Scope) -> bool:
    """Whether a request tries a password."""
    return bool(scope["method"] == "POST" and scope["path"].startswith(PATH))


def refuse_unknown(scope: Scope, cookies: str, needing: tuple[str, ...]) -> Refusal | None:
    """The refusal of a request without a login under the paths `needing` one, for which gradio requires none."""
    app: Any = scope.get("app")
    if getattr(app, "auth", None) is None or not scope["path"].startswith(needing):
        return None
    from starlette.requests import cookie_parser

    given = cookie_parser(cookies)
    named = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return None if any(given.get(name) in app.tokens for name in named) else (401, "log in to the page first")
