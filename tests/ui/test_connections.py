"""Connections that ask for nothing, floods of wrong passwords, and one visitor's work in another's hands."""

import asyncio
import http.client
import json
import select
import socket
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ldm.ui.server.guard import Guard
from ldm.ui.server.logins import FREE, Logins

pytest.importorskip("gradio")


@pytest.fixture
def bounds(served: Any) -> Iterator[Callable[..., None]]:
    """Other bounds for the connections of one test."""
    from ldm.ui.server import connections

    config = served.page.server.config
    before = config.http_protocol_class
    yield lambda **given: connections.limit_connections(config, **given)
    config.http_protocol_class = before


@pytest.fixture
def opened(served: Any) -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as lines:

        def start(sent: bytes = b"", rcvbuf: int | None = None) -> socket.socket:
            line = lines.enter_context(socket.socket())
            line.settimeout(20)
            if rcvbuf:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            line.connect(("127.0.0.1", served.page.server_port))
            line.sendall(sent)
            return line

        yield start


def is_ended(line: socket.socket, within_s: float) -> bool:
    """Whether the server closes the connection, or has."""
    try:
        return bool(select.select([line], [], [], within_s)[0]) and line.recv(1) == b""
    except ConnectionResetError:
        return True


WHOLE = b"GET /gradio_api/startup-events HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_connection_without_a_request_is_ended(bounds: Any, opened: Any, sent: bytes) -> None:
    bounds(idle_s=0.3)
    line = opened(sent)
    assert not is_ended(line, 0.05) and is_ended(line, 20)


def test_first_lines_that_drip_in_are_given_no_more_time(bounds: Any, opened: Any) -> None:
    bounds(idle_s=0.5)
    line, started = opened(b"GET / HTTP/1.1\r\nX: "), time.monotonic()
    while not is_ended(line, 0.05):
        assert time.monotonic() - started < 20
        try:
            line.sendall(b"x")
        except OSError:
            break


def test_a_second_request_that_does_not_come_is_ended_too(bounds: Any, opened: Any) -> None:
    bounds(idle_s=0.5)
    line = opened(WHOLE)
    answer = http.client.HTTPResponse(line)
    answer.begin()
    answer.read()
    line.sendall(b"GET / HT")
    assert is_ended(line, 20)


def test_a_request_in_work_has_its_time(bounds: Any, opened: Any, served: Any) -> None:
    """Its body is the guard's affair, and a stream may last."""
    bounds(idle_s=0.2)
    head = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert not is_ended(opened(head + b"Content-Length: 9\r\n\r\n"), 0.6)


def test_of_many_that_wait_the_first_gives_way_and_others_are_served(bounds: Any, opened: Any) -> None:
    bounds(waiting=3)
    silent = []
    for _ in range(4):
        silent.append(opened())
        time.sleep(0.05)  # the server takes them in this order
    assert is_ended(silent[0], 20) and not is_ended(silent[-1], 0.05)
    answer = http.client.HTTPResponse(opened(WHOLE))
    answer.begin()
    assert answer.status == 200


def test_beyond_so_many_in_work_a_new_one_is_ended(bounds: Any, opened: Any) -> None:
    bounds(most=0)
    assert is_ended(opened(), 20)


def unread(opened: Any, path: str, times: int = 4) -> socket.socket:
    """A connection that requests something large, and reads none of it."""
    line = opened(rcvbuf=2048)
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)
    return line


def is_reset(line: socket.socket, within_s: float = 20) -> bool:
    """Whether the server ends a connection whose answer isn't read: that shows where something is sent."""
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        try:
            line.sendall(b"\r\n")
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def large() -> str:
    """The address of the largest file that anybody may ask the page for."""
    import gradio

    assets = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    return f"/assets/{max(assets.glob('*.js'), key=lambda one: one.stat().st_size).name}"


def test_an_answer_that_is_not_read_is_ended(bounds: Any, opened: Any, large: str) -> None:
    bounds(idle_s=0.5)
    assert is_reset(unread(opened, large))


def test_an_answer_that_is_read_slowly_comes_whole(bounds: Any, opened: Any, large: str) -> None:
    bounds(idle_s=1)
    line = unread(opened, large, 1)
    answer = http.client.HTTPResponse(line)
    answer.begin()
    took, started = 0, time.monotonic()
    while part := answer.read1(2**16):
        took += len(part)
        time.sleep(0.1 if time.monotonic() - started < 2 else 0)
    assert took == int(answer.headers["content-length"]) and time.monotonic() - started > 2


@pytest.mark.parametrize("share", [{"each": 4}, {"most": 4}])
def test_of_many_that_do_not_read_the_first_gives_way_and_others_are_served(
    bounds: Any, opened: Any, large: str, share: dict[str, int]
) -> None:
    bounds(**share)
    lines = []
    for _ in range(4):
        lines.append(unread(opened, large))
        time.sleep(0.2)  # the server takes them in this order
    answer = http.client.HTTPResponse(opened(WHOLE))
    answer.begin()
    assert answer.status == 200 and is_reset(lines[0]) and not is_reset(lines[-1], 0.1)


class Line:
    """A connection as its bounds see it."""

    def __init__(self, held: set[Any], address: str, progress_at: float, works: bool = True, paused: bool = False):
        self.connections, self.client, self.progress_at, self.ended = held, (address, 1), progress_at, False
        self.cycle = SimpleNamespace(response_complete=not works)
        self.flow = SimpleNamespace(write_paused=paused)
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: 0, close=lambda: None)
        held.add(self)


@pytest.mark.parametrize(
    ("others", "limits", "ended"),
    [
        ([("a", 1.0), ("a", 2.0), ("b", 0.0)], {"each": 2}, 0),  # its own address's, not another's
        ([("a", 1.0), ("a", 2.0), ("b", 0.0)], {"each": 2, "trusted": "b, a"}, None),
        ([("a", 1.0), ("a", 2.0, True, True)], {"each": 2}, 1),  # what isn't read before what is
        ([("b", 1.0), ("b", 2.0, False)], {"most": 2}, 1),  # connections without a request before those in work
        ([("b", 1.0), ("c", 0.5)], {"most": 2}, 1),
        ([("b", 1.0), ("c", 0.5)], {"most": 3}, None),
    ],
)
def test_the_connection_without_progress_for_the_longest_gives_way(others: Any, limits: Any, ended: Any) -> None:
    from ldm.ui.server.connections import Limits, make_room

    held: set[Any] = set()
    lines = [Line(held, *one) for one in others]
    new = Line(held, "a", 9.0)
    make_room(new, Limits(**limits))
    assert [i for i, one in enumerate(lines) if one.ended] == ([] if ended is None else [ended]) and not new.ended


def test_what_is_sent_and_taken_is_progress() -> None:
    """Else newer connections in which nothing happens would end a visitor's stream of results."""
    from ldm.ui.server.connections import Limits, _bounded_protocol

    class Plain(asyncio.Protocol):
        def __init__(self) -> None:
            self.connections, self.client = {self}, ("a", 1)
            self.cycle, self.flow = SimpleNamespace(response_complete=False), SimpleNamespace(write_paused=False)

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

    unread, sent = [0], []
    transport = SimpleNamespace(
        get_write_buffer_size=lambda: unread[0], get_extra_info=lambda name: None, write=sent.append
    )

    async def stream() -> None:
        line: Any = _bounded_protocol(Plain, Limits())()
        line.connection_made(transport)
        begun = line.progress_at
        await asyncio.sleep(0.01)
        unread[0] = 3
        line.transport.write(b"more")
        assert line.progress_at == begun, "what came before is not read yet"
        unread[0] = 0
        line.transport.write(b"yet more")
        assert line.progress_at > begun and sent == [b"more", b"yet more"]
        line.connection_lost(None)

    asyncio.run(stream())


def test_addresses_of_one_client_are_one() -> None:
    from ldm.ui.server.addresses import client_of, is_trusted

    at = {a: client_of((a, 1)) for a in ("2001:db8::1", "2001:db8::2:3", "2001:db8:0:1::1", "10.0.0.1")}
    assert at["2001:db8::1"] == at["2001:db8::2:3"] != at["2001:db8:0:1::1"] and at["10.0.0.1"] == "10.0.0.1"
    assert client_of(("::ffff:10.0.0.1", 1)) == "10.0.0.1" and client_of(None) == ""
    assert is_trusted("10.0.0.1", "10.0.0.0/8") and is_trusted("x", "*") and not is_trusted("10.0.0.1", "")


def test_an_address_written_out_is_no_path_to_what_is_closed() -> None:
    """uvicorn passes on `GET http://gpu.example/ldm/monitoring` whole, and FastAPI, told its address, reads a part."""
    from ldm.ui.server.guard import refuse_closed

    for path in ("http://gpu.example/ldm/monitoring", "https://gpu.example/config", "monitoring", "*", ""):
        assert refuse_closed({"method": "GET", "path": path}) == (404, "the page doesn't serve this")
    assert refuse_closed({"method": "GET", "path": "/config"}) is None


# Passwords -----------------------------------------------------------------------------------------------------------


def test_wrong_passwords_in_a_row_make_a_client_wait_and_no_other_one() -> None:
    now = [0.0]
    logins = Logins(lambda: now[0])
    assert [logins.refusal("a") for _ in range(FREE + 1)] == [None] * (FREE + 1)
    assert logins.refusal("a") == (429, "too many wrong passwords: try again in 1 s")
    assert logins.refusal("b") is None
    waits = []
    for _ in range(9):
        started = now[0]
        while logins.refusal("a"):
            now[0] += 0.5
        waits.append(now[0] - started)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    now[0] += 1000
    assert [logins.refusal("a") for _ in range(FREE + 1)] == [None] * (FREE + 1), "forgotten by then"


def answers(
    guard: Guard, path: str, cookie: str = "", body: bytes = b"", method: str = "POST", client: str = "a"
) -> tuple[int, str]:
    """What is answered to a request."""
    sent: list[Any] = []
    headers = [(b"host", b"h"), (b"content-length", str(len(body)).encode()), (b"cookie", cookie.encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": (client, 1)}

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard({**scope, "app": guard.app}, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


class Inner:
    """An app with a password, whose answers have the status that a request's body says."""

    auth, cookie_id, tokens = {"me": "secret"}, "c", {"token": "me"}  # noqa: RUF012

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = int((await receive())["body"] or b"200")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"app"})


@pytest.fixture
def guard() -> Guard:
    from ldm.ui.server.bodies import Bodies

    return Guard(Inner(), SimpleNamespace(trim=lambda: None), Bodies(lambda: 2**20))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/login", "/login/"])
def test_a_flood_of_wrong_passwords_is_answered_without_looking(guard: Guard, path: str) -> None:
    assert [answers(guard, path, body=b"400")[0] for _ in range(FREE + 3)] == [400] * (FREE + 1) + [429] * 2
    assert "try again in" in answers(guard, path, body=b"200")[1]


def test_all_addresses_of_one_network_are_one_who_tries(guard: Guard) -> None:
    tries = [answers(guard, "/login", body=b"400", client=f"2001:db8::{i}")[0] for i in range(1, FREE + 3)]
    assert tries == [400] * (FREE + 1) + [429]
    assert answers(guard, "/login", body=b"400", client="2001:db8:0:1::1")[0] == 400, "another network"


def test_a_right_password_clears_the_wrong_ones_before(guard: Guard) -> None:
    for _ in range(3):
        assert {answers(guard, "/login", body=b"400")[0] for _ in range(FREE)} == {400}
        assert answers(guard, "/login", body=b"200")[0] == 200


@pytest.mark.parametrize("ask", ["POST cancel", "POST reset", "GET heartbeat/abc", "GET stream/a/1/2/playlist.m3u8"])
def test_nobody_without_a_login_ends_a_visitors_work(guard: Guard, ask: str) -> None:
    method, path = ask.split()
    for cookie, status in (("", 401), ("access-token-c=guess", 401), ("a=b; access-token-c=token", 200)):
        got = answers(guard, f"/gradio_api/{path}", cookie, b"200", method)
        assert got == (status, "app" if status == 200 else "log in to the page first")


def test_a_visitors_work_is_known_by_random_names_that_others_are_not_shown(served: Any) -> None:
    one, other = visitor(served.page.server_port), visitor(served.page.server_port)
    _, text = one("POST", "/gradio_api/call/run_state", {"data": ["ldm/tiny"]})
    mine = json.loads(text)["event_id"]
    assert len(mine) == 32 and uuid.UUID(mine).version == 4
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/status", "/gradio_api/startup-events"):
        assert mine not in other("GET", path)[1], path
    guess = uuid.uuid4().hex
    for function in range(40):
        body = {"session_hash": guess, "fn_index": function, "event_id": guess}
        assert other("POST", "/gradio_api/cancel", body)[0] == 200
    assert "event: complete" not in other("GET", f"/gradio_api/call/run_state/{guess}")[1]
    assert "event: complete" in one("GET", f"/gradio_api/call/run_state/{mine}")[1]


@pytest.mark.slow
def test_with_a_password_nothing_of_the_page_is_reached_without_it(runs: Path) -> None:
    from ldm.ui.server.serve import serve
    from tests.ui.conftest import config

    page = serve(config(runs, auth="me:secret"))
    try:
        known, unknown = (visitor(page.page.server_port, password) for password in ("secret", "wrong"))
        join = {"data": [], "fn_index": 0, "session_hash": "abc"}
        for method, path, body in (
            ("POST", "/gradio_api/queue/join", join), ("GET", "/gradio_api/queue/data?session_hash=abc", None),
            ("POST", "/gradio_api/cancel", {"session_hash": "abc", "fn_index": 0, "event_id": "e"}),
            ("GET", "/gradio_api/heartbeat/abc", None), ("POST", "/gradio_api/call/run_state", {"data": ["x"]}),
            ("GET", "/config", None), ("GET", "/gradio_api/info", None), ("GET", "/gradio_api/file=/etc/passwd", None),
        ):  # fmt: skip
            assert unknown(method, path, body, False)[0] == 401, path
        assert known("GET", "/gradio_api/heartbeat/abc", None, False)[0] == 200
        assert known("POST", "/gradio_api/cancel", {"session_hash": "a", "fn_index": 0, "event_id": "e"})[0] == 200
    finally:
        page.close()


def visitor(port: int, password: str | None = None) -> Callable[..., tuple[int, str]]:
    """Requests of one who has tried a password, as status and text (if it is read) of the answer."""

    def ask(path: str, body: Any, headers: dict[str, str], method: str, reads: bool = True) -> tuple[Any, str]:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            return answer, answer.read().decode() if reads else ""
        finally:
            line.close()

    cookie = ""
    if password:
        form = urllib.parse.urlencode({"username": "me", "password": password})
        answer, _ = ask("/login", form, {"Content-Type": "application/x-www-form-urlencoded"}, "POST")
        cookie = "; ".join(one.partition(";")[0] for one in answer.headers.get_all("set-cookie") or [])

    def send(method: str, path: str, body: Any = None, reads: bool = True) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Cookie": cookie}
        answer, text = ask(path, body and json.dumps(body), headers, method, reads)
        return answer.status, text

    return send
