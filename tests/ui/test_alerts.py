"""When alerts come, once each, and what the webhook gets."""

import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.common.errors import UserError
from ldm.ui.runs.alerts import Alert, Alerter, Rules, disk_alerts, parse_rules, post, run_alerts
from ldm.ui.runs.run_state import RunState

RULES = parse_rules(10, 1, "val/loss > 2\ntrain/lr<=1e-6", "")


def run(status: str = "running", **changes: Any) -> RunState:
    return RunState("ldm", "emoji", Path("x"), status, step=50, **changes)


def kinds(alerts: list[Alert]) -> list[str]:
    return [alert.kind for alert in alerts]


def test_a_sound_run_raises_none() -> None:
    assert run_alerts(run(loss=0.5), {"val/loss": [(40, 1.0)], "train/lr": [(40, 1e-3)]}, 60, RULES) == []


def test_a_loss_that_is_no_number() -> None:
    (alert,) = run_alerts(run(loss=math.nan), {"train/loss": [(1, 1.0), (50, math.nan)]}, 0, RULES)
    assert alert.kind == "nan" and "train/loss" in alert.text and "50" in alert.text


def test_a_run_that_stopped_itself_over_one_is_reported_as_such() -> None:
    message = "error: step 7: the loss of sample 3 isn't finite."
    assert kinds(run_alerts(run("failed", error=message), {}, 0, RULES)) == ["nan"]
    assert kinds(run_alerts(run("failed", error="error: no data."), {}, 0, RULES)) == ["failed"]


def test_standing_still() -> None:
    assert kinds(run_alerts(run(), {}, 601, RULES)) == ["stall"]
    assert run_alerts(run(), {}, 601, Rules(stall_minutes=0)) == []
    assert run_alerts(run("stopped"), {}, 601, RULES) == []


def test_thresholds_of_either_sign() -> None:
    found = run_alerts(run(), {"val/loss": [(40, 2.5)], "train/lr": [(40, 1e-6)]}, 0, RULES)
    assert [alert.text.partition(":")[0] for alert in found] == ["val/loss > 2", "train/lr <= 1e-06"]


def test_a_full_disk() -> None:
    assert kinds(disk_alerts(500_000_000, RULES)) == ["disk"] and disk_alerts(2_000_000_000, RULES) == []


@pytest.mark.parametrize(
    "typed",
    [
        (-1, 1, "", ""),
        (1, 1, "loss above 2", ""),
        (1, 1, "loss > much", ""),
        (1, 1, "loss > nan", ""),
        (1, 1, "> 2", ""),
        (1, 1, " " * 50_000 + "loss", ""),  # at once: the server answers nobody while it looks
        (1, 1, "loss" + " " * 50_000 + "!", ""),
        (1, 1, "", "file:///etc/passwd"),
        (1, 1, "", "http://"),
    ],
)
def test_rules_that_cannot_be_are_refused(typed: tuple) -> None:
    with pytest.raises(UserError):
        parse_rules(*typed)


def test_an_alert_is_reported_once_until_it_has_ended() -> None:
    alerter = Alerter()
    high, higher = (Alert("threshold", "ldm/emoji", f"val/loss > 2: it is {v}.") for v in (3, 4))
    assert len(alerter.update([high])) == 1
    assert alerter.update([higher]) == [], "the same threshold, at another value"
    assert alerter.update([]) == []
    assert len(alerter.update([high])) == 1
    assert len(alerter.raised) == 2


class Hook(http.server.BaseHTTPRequestHandler):
    got: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Hook.got.clear()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
        server.shutdown()
        thread.join()


def test_the_webhook_gets_each_alert(hook: str) -> None:
    Alerter().update([Alert("nan", "ldm/emoji", "train/loss isn't finite.")], hook)
    (got,) = Hook.got
    assert got["kind"] == "nan" and got["run"] == "ldm/emoji" and got["time"]
    assert got["text"] == got["content"] == "[nan] ldm/emoji train/loss isn't finite."


def test_a_webhook_that_is_away_is_reported_and_nothing_breaks() -> None:
    alerter = Alerter()
    assert len(alerter.update([Alert("disk", "", "full.")], "http://127.0.0.1:9/")) == 1
    assert "can't be reached" in alerter.webhook_errors[0]


def test_a_webhook_cannot_be_a_file() -> None:
    with pytest.raises((OSError, ValueError)):
        post("no address", Alert("test", "", ""))
