"""Alerts on runs: a loss that isn't finite, a run that stalls or fails, a full disk, a metric beyond a threshold."""

import json
import math
import operator
import re
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from ldm.common.errors import UserError
from ldm.ui.runs.run_state import RunState

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_METRIC = re.compile(r"[\w/ .-]+")
_SIGN = re.compile("[<>]=?")


@dataclass(frozen=True)
class Threshold:
    """`metric` of metrics.csv compared with `value`, as in `val/loss > 2`."""

    metric: str
    sign: str
    value: float

    def holds(self, value: float) -> bool:
        """Whether a value of the metric raises the alert."""
        return _COMPARE[self.sign](value, self.value)

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.value:g}"


@dataclass(frozen=True)
class Rules:
    """When alerts are raised, and the address that they are posted to. Zero turns a rule off."""

    stall_minutes: float = 10.0
    disk_gb: float = 1.0
    thresholds: tuple[Threshold, ...] = ()
    webhook: str = ""


@dataclass(frozen=True)
class Alert:
    """`kind` is nan, failed, stall, disk, threshold or test; `run` is STAGE/NAME, or empty for the machine itself."""

    kind: str
    run: str
    text: str
    time: str = ""


def parse_rules(stall_minutes: float, disk_gb: float, thresholds: str, webhook: str) -> Rules:
    """Rules from typed values, with one threshold per line. Raises UserError for invalid ones."""
    if not (0 <= stall_minutes < math.inf and 0 <= disk_gb < math.inf):
        raise UserError("minutes and gigabytes have to be numbers of at least 0; 0 turns the rule off.")
    parsed = tuple(_threshold(line) for line in thresholds.splitlines() if line.strip())
    webhook = webhook.strip()
    if webhook and (urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).hostname):
        raise UserError(f"the webhook '{webhook}' has to be an address that starts with http:// or https://.")
    return Rules(stall_minutes, disk_gb, parsed, webhook)


def run_alerts(
    run: RunState, metrics: Mapping[str, Sequence[tuple[int, float]]], idle_seconds: float, rules: Rules
) -> list[Alert]:
    """The alerts that a run raises now. `metrics` are its columns as (step, value), `idle_seconds` is the time since
    its last step."""
    found = []
    bad = [name for name, points in metrics.items() if points and not math.isfinite(points[-1][1])]
    bad += ["loss"] if run.loss is not None and not math.isfinite(run.loss) and "train/loss" not in bad else []
    if run.status == "running" and bad:
        found.append(Alert("nan", run.key, f"{', '.join(bad)} isn't a finite number at step {run.step}."))
    if run.status == "failed":
        kind = "nan" if "isn't finite" in run.error else "failed"
        found.append(Alert(kind, run.key, run.error.removeprefix("error: ") or "it ended with an error: see its log."))
    if run.status == "running" and 0 < rules.stall_minutes * 60 < idle_seconds:
        found.append(Alert("stall", run.key, f"no step for {idle_seconds / 60:.0f} minutes, at step {run.step}."))
    for threshold in rules.thresholds if run.status == "running" else ():
        points = metrics.get(threshold.metric)
        if points and threshold.holds(points[-1][1]):
            text = f"{threshold}: it is {points[-1][1]:.4g} at step {points[-1][0]}."
            found.append(Alert("threshold", run.key, text))
    return found


def disk_alerts(free_bytes: int, rules: Rules) -> list[Alert]:
    """The alert that a disk with this much space left raises, if any."""
    if free_bytes < rules.disk_gb * 1e9:
        return [Alert("disk", "", f"only {free_bytes / 1e9:.1f} GB are free where the runs are kept.")]
    return []


class Alerter:
    """Raises each alert once, from when its condition starts to hold until it ends. Thread-safe.

    `raised` are the latest alerts, newest first; `webhook_errors` are the latest errors of the webhook.
    """

    def __init__(self, send: Callable[[str, Alert], None] | None = None):
        self.raised: deque[Alert] = deque(maxlen=100)
        self.webhook_errors: deque[str] = deque(maxlen=5)
        self._send, self._active, self._lock = send or post, set[tuple[str, ...]](), threading.Lock()

    def update(self, active: Sequence[Alert], webhook: str = "") -> list[Alert]:
        """Raises the alerts that are new among those that hold now, and returns them."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._lock:
            new = [alert for alert in active if _identity(alert) not in self._active]
            self._active = {_identity(alert) for alert in active}
        new = [Alert(alert.kind, alert.run, alert.text, stamp) for alert in new]
        for alert in new:
            self.raised.appendleft(alert)
            if webhook:
                self.send(webhook, alert)
        return new

    def send(self, webhook: str, alert: Alert) -> bool:
        """Sends one alert, and returns whether that succeeded. Errors are kept for the page."""
        try:
            self._send(webhook, alert)
            return True
        except (OSError, ValueError) as error:
            self.webhook_errors.appendleft(f"{time.strftime('%H:%M:%S')} the webhook can't be reached: {error}")
            return False


def post(webhook: str, alert: Alert, timeout: float = 5.0) -> None:
    """Posts an alert as JSON: its fields, and the whole sentence as `text` and `content`, which chat programs show.

    `timeout` is in seconds. Raises OSError or ValueError.
    """
    sentence = f"[{alert.kind}] {alert.run} {alert.text}".replace("  ", " ")
    body = json.dumps(asdict(alert) | {"about": alert.text, "text": sentence, "content": sentence}).encode()
    request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310  the scheme was checked
        pass


def _identity(alert: Alert) -> tuple[str, ...]:
    """A key that is equal for the same alert: for a run's threshold, it doesn't depend on the current value."""
    return (alert.kind, alert.run, alert.text.partition(":")[0] if alert.kind == "threshold" else "")


def _threshold(line: str) -> Threshold:
    """A threshold from `METRIC SIGN NUMBER`. It is split at the sign, because a single pattern would try every division
    of long blanks."""
    sign = _SIGN.search(line)
    metric, value = (line[: sign.start()].strip(), line[sign.end() :]) if sign else ("", "")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not sign or not _METRIC.fullmatch(metric) or math.isnan(number):
        raise UserError(f"the threshold '{line.strip()}' has to be like val/loss > 2.")
    return Threshold(metric, sign[0], number)
