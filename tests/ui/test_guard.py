"""What other web pages, and programs that send too much, get from the page's server."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
        try:
            line.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = line.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            line.close()

    yield send


def stored(served: Any) -> list[Path]:
    return [path for path in served.app.shown.path.rglob("*") if path.is_file()]


OTHERS = {
    "cross-site": CROSS,
    "another port of this machine": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "a sandboxed frame": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "a browser without Sec-Fetch-Site": {"Origin": FOREIGN},
    "an Origin that is none": {"Origin": "http://["},
    "two Origins": {"Origin": "http://127.0.0.1 https://attacker.example"},
    "a form without Origin": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "its own name in another port": {"Origin": "http://localhost:80"},
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


def test_a_link_to_the_page_may_be_followed_and_nothing_else(ask: Any) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask("GET", "/", **link)[0] == 200
    for path in ("/config", "/gradio_api/deep_link?session_hash=x", "/gradio_api/queue/data?session_hash=x"):
        assert ask("GET", path, **link)[0] == 403
    for dest in ("iframe", "frame", "embed", "object", "image"):
        assert ask("GET", "/", **link | {"Sec-Fetch-Dest": dest})[0] == 403


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
        {"Origin": "https://gpu.example", "X-Forwarded-Host": "gpu.example"},  # a server with TLS before it
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
    monkeypatch.setattr(served.app.shown, "limit", 5 * 2**20)
    for i in range(8):
        many = b"".join(part(bytes([i, j]) * 2**19, f"{i}-{j}.png") for j in range(2))
        assert ask("POST", UPLOAD, many + b"--x--\r\n", **FORM)[0] == 200
        assert sum(path.stat().st_size for path in stored(served)) <= 5 * 2**20
    assert {path.name for path in stored(served)} >= {"7-0.png", "7-1.png"}
    monkeypatch.setattr(served.app.shown, "limit", 2**20)
    assert ask("POST", UPLOAD, part(bytes(2**20)) + b"--x--\r\n", **FORM)[0] == 503
