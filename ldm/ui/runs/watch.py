"""Looks at the runs every few seconds: keeps a record of speed and memory, and raises alerts."""

import csv
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ldm.common.errors import UserError
from ldm.ui.runs.alerts import Alarms, Alert, Rules, of_disk, of_run
from ldm.ui.runs.launch import Launcher
from ldm.ui.runs.listing import RunState, curves, keys, memory_mb, state

log = logging.getLogger(__name__)
COLUMNS = ("time", "step", "loss", "samples_per_s", "memory_mb", "gpu_mb")


class Watcher:
    """`look` once, or `start` a thread that looks every `seconds`."""

    def __init__(
        self,
        runs_dir: Path,
        launcher: Launcher,
        alarms: Alarms,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ):
        self.runs_dir, self.launcher, self.alarms, self.seconds, self.clock = runs_dir, launcher, alarms, seconds, clock
        self.rules = Rules()
        self._moved: dict[str, tuple[int | None, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="ldm-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def listed(self) -> list[str]:
        """All runs, those first that were started here and have no folder yet, or never came to have one."""
        known = keys(self.runs_dir)
        return [*(key for key in self.launcher.started() if key not in known), *known]

    def state(self, key: str) -> RunState:
        """How a run stands, with what the launcher knows of it."""
        if key not in self.listed():
            raise UserError(f"there is no run {key} in {self.runs_dir}.")
        return state(
            self.runs_dir, key, self.launcher.log(key), self.launcher.exit_code(key), self.launcher.is_live(key)
        )

    def look(self) -> list[Alert]:
        """Notes how the running runs stand; returns the alerts that are new."""
        holding: list[Alert] = []
        for key in self.listed():
            run = self.state(key)
            if run.status in ("running", "failed"):
                holding += of_run(run, curves(run.path), self._idle(run), self.rules)
            if run.status == "running" and run.pid and run.here:
                self._note(run)
        if self.runs_dir.is_dir():
            holding += of_disk(shutil.disk_usage(self.runs_dir).free, self.rules)
        return self.alarms.update(holding, self.rules.webhook)

    def record(self, key: str) -> Path:
        """The kept record of a run: COLUMNS, a row a look while it ran."""
        return self.launcher.folder / "records" / f"{key.replace('/', '--')}.csv"

    def _idle(self, run: RunState) -> float:
        """Seconds since the run was first seen at its step."""
        step, since = self._moved.get(run.key, (None, 0.0))
        if run.status != "running" or run.key not in self._moved or step != run.step:
            self._moved[run.key] = (run.step, self.clock())
            return 0.0
        return self.clock() - since

    def _note(self, run: RunState) -> None:
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
            except Exception:  # a folder removed while it is read, and the like: the next look is soon
                log.exception("the runs can't be looked at")


def read_record(path: Path) -> list[dict[str, float]]:
    """The rows of a record, numbers only; speed from the steps where it wasn't said."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []
    return [{k: float(v) for k, v in row.items() if k in COLUMNS and _is_number(v)} for row in rows]


def steps_per_s(rows: list[dict[str, float]]) -> list[tuple[float, float]]:
    """(minutes since the record began, steps per second), over the looks between which the step moved."""
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
    """The GPU memory of a process in MB, as NVIDIA's tool says; None without a GPU."""
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
