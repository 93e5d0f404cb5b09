"""What other web pages, and programs that send too much, get from the page's server."""

import http.client
import json
import logging
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.common.errors import UserError

pytest.importorskip("gradio")
UPLOAD = "/gradio_api/upload"
START = "/gradio_api/call/start_run"
FOREIGN = "https://attacker.example"
CROSS = {"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
RUN = json.dumps({"data": ["vae", "stolen", "data=digits", False]}).encode()


def part(content: bytes, name: str = "a.png") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture
def ask(served: Any) -> Iterator[Any]:
    """A request, as its status and headers."""

    def send(method: str, path: str, body: Any = None, **headers: Any) -> tuple[int, dict[str, str]]:
        line = http.client.HTTPConnection("127.0.0.1", served.page.server_port, timeout=20)
        here = f"127.0.0.1:{served.page.server_port}"
        try:
            named = {key.replace("_", "-"): value.replace("HERE", here) for key, value in headers.items()}
            line.request(method, path, body, named)
            answer = line.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            line.close()

    yield send


def stored(served: Any) -> list[Path]:
    return [path for path in served.app.served_files.path.rglob("*") if path.is_file()]


OTHERS = {
    "cross-site": CROSS,
    "another port of this machine": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "a sandboxed frame": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "a browser without Sec-Fetch-Site": {"Origin": FOREIGN},
    "an Origin that is none": {"Origin": "http://["},
    "two Origins": {"Origin": "http://127.0.0.1 https://attacker.example"},
    "a form without Origin": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "its own name in another port": {"Origin": "http://localhost:80"},
    "its own name by another scheme": {"Origin": "https://HERE"},
    "its own name with a user": {"Origin": "http://me@HERE"},
    "its own name with a path": {"Origin": "http://HERE/"},
    "its own name and another": {"Origin": "http://HERE http://HERE"},
    "an empty Origin": {"Origin": ""},
    "a host that it says it is reached at": {"Origin": FOREIGN, "X-Forwarded-Host": "attacker.example"},
    "a scheme that it says it is reached by": {"Origin": "https://HERE", "X-Forwarded-Proto": "https"},
    "by another header": {"Origin": FOREIGN, "Forwarded": "host=attacker.example;proto=https"},
}


@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", ""])
def test_no_other_page_starts_a_run(ask: Any, served: Any, headers: dict[str, str], kind: str) -> None:
    for path in (START, "/gradio_api/run/start_run", "/gradio_api/api/start_run", "/gradio_api/queue/join"):
        assert ask("POST", path, RUN, **headers, **({"Content-Type": kind} if kind else {}))[0] == 403
    assert served.app.launcher.started() == []


def test_a_json_blob_without_a_name_of_its_kind_starts_nothing(ask: Any, served: Any) -> None:
    """gradio and FastAPI themselves refuse it, in the versions that pyproject.toml admits."""
    for kind in ({}, {"Content-Type": "text/plain"}):
        assert ask("POST", START, RUN, **kind)[0] == 422
    assert served.app.launcher.started() == []


@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS)
def test_no_other_page_stores_or_reads_anything(ask: Any, served: Any, headers: dict[str, str]) -> None:
    before = stored(served)
    assert ask("POST", UPLOAD, part(b"x") + b"--x--\r\n", **headers, **FORM)[0] == 403
    for path in ("/config", "/gradio_api/info", "/gradio_api/heartbeat/x", f"/gradio_api/file={before and before[0]}"):
        assert ask("GET", path, **headers)[0] == 403
    assert stored(served) == before


def test_a_server_before_it_is_believed_where_it_was_named() -> None:
    from ldm.ui.server.guard import refuse_foreign
    from ldm.ui.server.serve import origin_of, proxy_address

    def refused(origin: str, proxy: str | None, host: str = "gpu.example") -> bool:
        scope = {"method": "POST", "path": UPLOAD, "headers": [(b"origin", origin.encode()), (b"host", host.encode())]}
        return refuse_foreign(scope, proxy) is not None

    address = proxy_address("https://GPU.example:443/ldm/", ("me", "secret"))
    assert address == "https://GPU.example:443/ldm" and origin_of(address) == "https://gpu.example"
    assert origin_of("http://gpu.example:8080/x") == "http://gpu.example:8080"
    assert not refused("https://gpu.example", origin_of(address)) and refused("https://gpu.example", None)
    for other in (
        "http://gpu.example",
        "https://gpu.example:8443",
        "https://me@gpu.example",
        "https://gpu.example/ldm",
    ):
        assert refused(other, origin_of(address))
    assert refused("http://", None, host="")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gpu.example", "an address like"), ("ftp://gpu.example", "an address like"), ("https://", "an address like"),
        ("https://me@gpu.example", "an address like"), ("https://gpu.example?x", "an address like"),
        ("https://[", "an address like"), ("https://gpu.example:x", "an address like"),
        ("https://gpu.example", "auth=USER:PASSWORD"),
    ],
)  # fmt: skip
def test_a_server_before_it_is_an_address_and_needs_a_password(address: str, words: str) -> None:
    from ldm.ui.server.serve import proxy_address

    assert proxy_address(None, None) is None
    with pytest.raises(UserError, match=words):
        proxy_address(address, None if "auth" in words else ("me", "secret"))


def test_a_link_to_the_page_may_be_followed_and_nothing_else(ask: Any) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask("GET", "/", **link)[0] == 200
    for path in ("/config", "/gradio_api/deep_link?session_hash=x", "/gradio_api/queue/data?session_hash=x"):
        assert ask("GET", path, **link)[0] == 403
    for dest in ("iframe", "frame", "embed", "object", "image"):
        assert ask("GET", "/", **link | {"Sec-Fetch-Dest": dest})[0] == 403


def test_the_page_names_no_server_that_a_request_names(served: Any) -> None:
    line = http.client.HTTPConnection("127.0.0.1", served.page.server_port, timeout=20)
    given = {"X-Gradio-Server": FOREIGN, "X-Forwarded-Host": "attacker.example", "X-Forwarded-Prefix": "/attacker"}
    line.request("GET", "/config", headers=given)
    answer = line.getresponse()
    assert answer.status == 200 and b"attacker" not in answer.read()
    line.close()


def test_the_page_is_framed_by_none(ask: Any) -> None:
    for path in ("/", "/config", "/nowhere"):
        _, headers = ask("GET", path)
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"


def test_its_own_page_and_programs_are_let_in(ask: Any, served: Any) -> None:
    own = f"http://127.0.0.1:{served.page.server_port}"
    for headers in (
        {},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Origin": own},
        {"Origin": own.upper(), "X-Forwarded-Host": "attacker.example", "X-Forwarded-Proto": "https"},
    ):
        assert ask("POST", UPLOAD, part(b"x") + b"--x--\r\n", **headers, **FORM)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/component_server", "/gradio_api/process_recording", "/gradio_api/vibe-edit/",
        "/gradio_api/stream/x", "/gradio_api/run-history/connect", "//gradio_api/upload", "/upload",
        "/gradio_api/UPLOAD", "/",
    ],
)  # fmt: skip
def test_what_the_page_does_not_use_is_closed(ask: Any, path: str) -> None:
    assert ask("POST", path, b"{}")[0] == 404
    assert ask("GET", "/gradio_api/deep_link?session_hash=x")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/monitoring", "/monitoring/summary",
        *(f"/gradio_api/{name}" for name in ("openapi.json", "dev/reload", "runs", "vibe-code/", "run-history/x")),
    ],
)  # fmt: skip
def test_what_is_for_those_who_write_pages_is_not_read(ask: Any, path: str) -> None:
    assert ask("GET", path)[0] == 404 == ask("HEAD", path)[0]


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/app_id", "/manifest.json"]
)
def test_what_the_page_and_its_clients_read_is_open(ask: Any, path: str) -> None:
    assert ask("GET", path)[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_closed(ask: Any, method: str) -> None:
    assert ask(method, UPLOAD, b"x")[0] == 404


def test_no_websocket_is_opened(ask: Any) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert ask("GET", "/gradio_api/queue/join", **upgrade, **key)[0] != 101


def test_a_request_says_its_size_and_keeps_to_it(ask: Any, served: Any) -> None:
    before = set(stored(served))
    assert ask("POST", UPLOAD, **FORM, Transfer_Encoding="chunked")[0] == 411
    assert ask("POST", UPLOAD, **FORM, Transfer_Encoding="chunked", Content_Length="10")[0] in (400, 411)
    assert ask("POST", UPLOAD, b"", **FORM, Content_Length=str(65 * 2**20))[0] == 413
    assert ask("POST", UPLOAD, b"", **FORM, Content_Length="-1")[0] in (400, 411)
    assert ask("POST", START, b"", Content_Type="application/json", Content_Length=str(2**20 + 1))[0] == 413
    assert set(stored(served)) == before


def test_uploads_are_bounded_in_all_and_the_oldest_go(ask: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.app.served_files, "limit", 5 * 2**20)
    for i in range(8):
        many = b"".join(part(bytes([i, j]) * 2**19, f"{i}-{j}.png") for j in range(2))
        assert ask("POST", UPLOAD, many + b"--x--\r\n", **FORM)[0] == 200
        assert sum(path.stat().st_size for path in stored(served)) <= 5 * 2**20
    assert {path.name for path in stored(served)} >= {"7-0.png", "7-1.png"}
    monkeypatch.setattr(served.app.served_files, "limit", 2**20)
    assert ask("POST", UPLOAD, part(bytes(2**20)) + b"--x--\r\n", **FORM)[0] == 503


# Bodies that don't come ----------------------------------------------------------------------------------------------


@pytest.fixture
def begin(served: Any) -> Iterator[Any]:
    """A POST whose body has `length` bytes, of which `sent` come at once, as its socket."""
    lines: list[socket.socket] = []

    def start(length: int, sent: bytes = b"", path: str = UPLOAD, **headers: str) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", served.page.server_port), timeout=20)
        lines.append(line)
        kind = FORM if path == UPLOAD else {"Content-Type": "application/json"}
        head = {"Host": f"127.0.0.1:{served.page.server_port}", "Content-Length": str(length)} | kind | headers
        reply = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in head.items())
        line.sendall(f"POST {path} HTTP/1.1\r\n{reply}\r\n".encode() + sent)
        return line

    yield start
    for line in lines:
        line.close()


def answer(line: socket.socket) -> tuple[int, str]:
    """Status and text of the answer; the connection is closed after a refusal."""
    with http.client.HTTPResponse(line) as read:
        read.begin()
        return read.status, read.read().decode()


def arrived(served: Any, count: int, size: int = 0) -> None:
    """Waiting until so many bodies, of so many bytes together, are being received."""
    until = time.monotonic() + 10
    while len(held := list(served.bodies._open)) < count or sum(body.arrived for body in held) < size:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def troubles(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What the server and the page wrote into their logs."""
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


@pytest.fixture
def one_stored(ask: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """An upload that is kept, of a server with room for 8 MB."""
    monkeypatch.setattr(served.app.served_files, "limit", 8 * 2**20)
    served.app.served_files.trim()
    assert ask("POST", UPLOAD, part(bytes(2**20), "kept.png") + b"--x--\r\n", **FORM)[0] == 200
    return {path for path in stored(served) if path.name == "kept.png"}


def test_uploads_of_which_nothing_comes_take_no_ones_place(
    ask: Any, begin: Any, served: Any, one_stored: set[Path]
) -> None:
    silent = [begin(64 * 2**20) for _ in range(20)]
    arrived(served, 20)
    assert ask("POST", UPLOAD, part(b"x") + b"--x--\r\n", **FORM)[0] == 200
    assert {path for path in stored(served) if path.name == "kept.png"} == one_stored != set()
    assert not select.select(silent, [], [], 0)[0], "they may still come"


def test_a_client_has_so_many_open_at_a_time_and_the_most_silent_gives_way(
    ask: Any, begin: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.bodies, "each", 3)
    first = begin(2**20)
    arrived(served, 1)
    others = [begin(2**20, part(b"x"), X_Forwarded_For=f"10.0.0.{i}") for i in range(2)]
    arrived(served, 3, 2)
    assert ask("POST", UPLOAD, part(b"x") + b"--x--\r\n", **FORM)[0] == 200
    assert answer(first) == (503, "too many uploads at a time: try again in a moment")
    assert all(not select.select([line], [], [], 0)[0] for line in others), "the others go on"


def test_bytes_that_came_are_counted_and_stored_ones_stay(
    ask: Any, begin: Any, served: Any, one_stored: set[Path]
) -> None:
    line = begin(4 * 2**20, part(bytes(3 * 2**20))[:-2])
    arrived(served, 1, 3 * 2**20)
    assert ask("POST", UPLOAD, part(bytes(2**21)) + b"--x--\r\n", **FORM)[0] == 200
    assert answer(line)[0] == 503
    assert one_stored <= set(stored(served))


def test_a_slow_upload_is_taken(begin: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.bodies, "idle_s", 1.0)
    body = part(bytes(10), "slow.png") + b"--x--\r\n"
    line = begin(len(body))
    pieces = [body[i : i + 10] for i in range(0, len(body), 10)]
    for piece in pieces:
        line.sendall(piece)
        time.sleep(1.2 / len(pieces))
    assert answer(line)[0] == 200 and any(path.name == "slow.png" for path in stored(served))


def test_a_client_that_leaves_is_no_trouble_and_leaves_nothing(begin: Any, served: Any, troubles: Any) -> None:
    before = set(stored(served))
    for path, sent in ((UPLOAD, part(bytes(1000))[:-2]), (UPLOAD, b""), (START, b'{"data"')):
        line = begin(2**20, sent, path)
        arrived(served, 1, len(sent))
        line.close()
        until = time.monotonic() + 10
        while served.bodies._open:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not troubles.records and set(stored(served)) == before


@pytest.mark.parametrize(
    ("path", "sent"), [(UPLOAD, b""), (UPLOAD, part(b"x")), (START, b"{"), ("/gradio_api/queue/join", b"")]
)
def test_any_request_has_to_come(
    begin: Any, served: Any, path: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.bodies, "idle_s", 0.1)
    before = set(stored(served))
    assert answer(begin(1000, sent, path)) == (408, "no data of the request arrived for 0.1 s")
    assert served.app.launcher.started() == [] and set(stored(served)) == before and not served.bodies._open


ODD = {
    "a field that is no file": b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--x--\r\n',
    "a part without a name": b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
    "a part without its kind": b"--x\r\n\r\nx\r\n--x--\r\n",
    "no part": b"nothing",
    "too many parts": part(b"") * 1001 + b"--x--\r\n",
    "a header without an end": b"--x\r\nContent-Disposition: " + b"a" * 2**16,
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize("query", ["", "?upload_id=1"])
def test_an_invalid_upload_is_refused_with_a_sentence(
    begin: Any, served: Any, troubles: Any, body: bytes, query: str
) -> None:
    before = set(stored(served))
    status, reply = answer(begin(len(body), body, UPLOAD + query, **FORM))
    assert status in (400, 413) and "/" not in reply.replace("multipart/form-data", "") and "\n" not in reply
    assert not [one for one in troubles.records if one.exc_info]
    assert set(stored(served)) == before


@pytest.mark.parametrize("name", ["../../a.png", "a\0b.png", "/etc/passwd", "..", "x" * 300 + ".png", "%2e%2e%2fa"])
def test_uploads_have_names_inside_their_folder(ask: Any, served: Any, troubles: Any, name: str) -> None:
    before = set(stored(served))
    status, _ = ask("POST", UPLOAD, part(name.encode(), name) + b"--x--\r\n", **FORM)
    assert status in (200, 400) and not [one for one in troubles.records if one.exc_info]
    left = [path.relative_to(served.app.served_files.path).parts for path in set(stored(served)) - before]
    assert all(len(parts) <= 2 and len(parts[-1].encode()) < 256 for parts in left)  # its hash, and its name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/gradio_api/call/nothing", {"data": []}),
        ("/gradio_api/run/nothing", {"data": []}),
        ("/gradio_api/api/nothing", {"data": []}),
        ("/gradio_api/queue/join", {"data": [], "fn_index": -1, "session_hash": "x"}),
        ("/gradio_api/queue/join", {"data": [], "fn_index": 10**9, "session_hash": "x"}),
        ("/gradio_api/queue/join", {"data": [], "fn_index": None, "session_hash": None}),
        ("/gradio_api/cancel", {"session_hash": 3, "fn_index": "x", "event_id": None}),
        ("/gradio_api/reset", {"event_id": {"a": 1}}),
        ("/gradio_api/call/start_run", {"data": None}),
        ("/gradio_api/call/start_run", [[[]]]),
    ],
)  # fmt: skip
def test_an_unknown_function_is_refused_without_a_traceback(begin: Any, troubles: Any, path: str, body: Any) -> None:
    text = json.dumps(body).encode()
    status, reply = answer(begin(len(text), text, path, Connection="close"))
    assert status in (400, 404, 422) and reply and not [one for one in troubles.records if one.exc_info]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/gradio_api/call/v2/generate", '{"data": []}'),
        ("/gradio_api/call/v2/run_state", '{"data": ["ldm/tiny"]}'),
        ("/gradio_api/call/v2/nothing", "{}"),
        ("/gradio_api/cancel", '{"session_hash": NaN, "fn_index": 0, "event_id": "x"}'),
        ("/gradio_api/reset", '{"event_id": 1e400}'),
        ("/gradio_api/queue/join", '{"data": [], "fn_index": "\\ud800", "session_hash": "x"}'),
        ("/gradio_api/queue/join", '{"data": NaN}'),
        ("/gradio_api/call/run_state", '{"data": "\\ud800"}'),
        ("/gradio_api/run/run_state", '{"data": ["\\ud800"]}'),
    ],
)  # fmt: skip
def test_what_cannot_be_repeated_is_refused_in_a_sentence(begin: Any, troubles: Any, path: str, text: str) -> None:
    status, reply = answer(begin(len(text), text.encode(), path, Connection="close"))
    assert status != 500 or "Failed" in reply
    assert status >= 400 and reply != "Internal Server Error" and not [one for one in troubles.records if one.exc_info]


def test_reading_what_is_not_there_is_no_trouble(ask: Any, served: Any, troubles: Any) -> None:
    assert ask("POST", UPLOAD, part(b"x" * 10) + b"--x--\r\n", **FORM)[0] == 200
    file = next(iter(stored(served)))
    for value in ("bytes=0-,0-,0-", "bytes=a-b", "bytes=--", "bytes=0-" + "9" * 5000, "bytes=0-1", "bytes=-1"):
        assert ask("GET", f"/gradio_api/file={file}", Range=value)[0] in (200, 206, 416), value
    for path in ("queue/data?session_hash=nobody", "call/generate/nope", "call/v2/generate/nope"):
        assert ask("GET", f"/gradio_api/{path}")[0] in (200, 404)
    assert not [one for one in troubles.records if one.exc_info]


def test_a_request_without_a_host_is_refused(served: Any, troubles: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.page.server_port), timeout=20) as line:
        line.sendall(b"GET /config HTTP/1.0\r\nOrigin: http://\r\n\r\n")
        assert answer(line)[0] in (400, 403) and not [one for one in troubles.records if one.exc_info]


def test_what_is_large_or_odd_beside_the_body_is_refused(ask: Any, served: Any, troubles: Any) -> None:
    assert ask("GET", "/", X_Long="x" * 2**20)[0] in (400, 431)
    assert ask("GET", "/" + "x" * 2**17)[0] in (400, 404, 414, 431)
    assert ask("HEAD", UPLOAD)[0] in (404, 405)
    assert ask("OPTIONS", UPLOAD, Origin=FOREIGN, Access_Control_Request_Method="POST")[0] in (200, 400, 403, 405)
    assert not [one for one in troubles.records if one.exc_info]
