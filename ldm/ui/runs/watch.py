"""Watches the runs: every few seconds, records their speed and memory and raises alerts."""

import csv
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ldm.common.errors import UserError
from ldm.ui.runs.alerts import Alert, Alerter, Rules, disk_alerts, run_alerts
from ldm.ui.runs.launch import Launcher
from ldm.ui.runs.run_state import RunState, curves, memory_mb, read_state, run_keys

log = logging.getLogger(__name__)
COLUMNS = ("time", "step", "loss", "samples_per_s", "memory_mb", "gpu_mb")


class Watcher:
    """Calls `look` every `seconds` in a thread, from `start` to `close`."""

    def __init__(
        self,
        runs_dir: Path,
        launcher: Launcher,
        alerter: Alerter,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ):
        self.runs_dir, self.launcher, self.alerter, self.seconds, self.clock = (
            runs_dir,
            launcher,
            alerter,
            seconds,
            clock,
        )
        self.rules = Rules()
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._watch, name="ldm-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._ended.set()
        if self._thread:
            self._thread.join()

    def listed(self) -> list[str]:
        """All runs; first those that were started here and don't have a folder (yet)."""
        known = run_keys(self.runs_dir)
        return [*(key for key in self.launcher.started() if key not in known), *known]

    def state(self, key: str) -> RunState:
        """The state of a run, with what the launcher knows of it. Raises UserError for an unknown run."""
        if key not in self.listed():
            raise UserError(f"there is no run {key} in {self.runs_dir}.")
        return read_state(
            self.runs_dir,
            key,
            self.launcher.log(key),
            exit_code=self.launcher.exit_code(key),
            starting=self.launcher.is_live(key),
        )

    def look(self) -> list[Alert]:
        """Records the state of the running runs; returns the alerts that are new."""
        active: list[Alert] = []
        for key in self.listed():
            try:
                active += self._look_at(self.state(key))
            except Exception:  # one damaged folder, or one that is removed meanwhile, hides no alerts of others
                log.exception("the run %s can't be read", key)
        if self.runs_dir.is_dir():
            active += disk_alerts(shutil.disk_usage(self.runs_dir).free, self.rules)
        return self.alerter.update(active, self.rules.webhook)

    def _look_at(self, run: RunState) -> list[Alert]:
        """Records the state of a run; returns its alerts."""
        if run.status == "running" and run.pid and run.on_this_host:
            self._append_record(run)
        if run.status not in ("running", "failed"):
            return []
        return run_alerts(run, curves(run.path), self._idle(run), self.rules)

    def record(self, key: str) -> Path:
        """The file of a run's record: COLUMNS, with a row for each look while it ran."""
        return self.launcher.folder / "records" / f"{key.replace('/', '--')}.csv"

    def _idle(self, run: RunState) -> float:
        """Seconds since the run was first seen at its step."""
        step, since = self._seen.get(run.key, (None, 0.0))
        if run.status != "running" or run.key not in self._seen or step != run.step:
            self._seen[run.key] = (run.step, self.clock())
            return 0.0
        return self.clock() - since

    def _append_record(self, run: RunState) -> None:
        path = self.record(run.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        memory = memory_mb(run.pid or 0)
        row = (
            f"{self.clock():.0f}",
            run.step,
            run.loss,
            run.samples_per_s,
            memory and f"{memory:.0f}",
            gpu_mb(run.pid or 0),
        )
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow(["" if value is None else value for value in row])

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds):
            try:
                self.look()
            except Exception:  # such as a folder that is removed while it is read: the next look is soon
                log.exception("the runs can't be read")


def read_record(path: Path) -> list[dict[str, float]]:
    """The rows of a record, with the numbers alone; empty if it can't be read."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []
    return [{k: float(v) for k, v in row.items() if k in COLUMNS and _is_number(v)} for row in rows]


def steps_per_s(rows: list[dict[str, float]]) -> list[tuple[float, float]]:
    """(minutes since the start of the record, steps per second), between the rows at which the step changed."""
    found, last = [], None
    for row in rows:
        if "step" not in row or "time" not in row:
            continue
        if last is not None and row["step"] > last["step"] and row["time"] > last["time"]:
            rate = (row["step"] - last["step"]) / (row["time"] - last["time"])
            found.append(((row["time"] - rows[0]["time"]) / 60, rate))
        if last is None or row["step"] != last["step"]:
            last = row
    return found


def gpu_mb(pid: int) -> float | None:
    """The GPU memory of a process in MB, from nvidia-smi; None without a GPU."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=5).stdout.splitlines()
        used = [float(line.split(",")[1]) for line in lines if line.split(",")[0].strip() == str(pid)]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return sum(used) if used else None


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) is not None
    except ValueError:
        return False
