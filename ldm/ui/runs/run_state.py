"""The contents of a run's folder: its state, curves, sample grids and report. Nothing is written."""

import csv
import io
import json
import math
import re
import socket
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.common.errors import UserError
from ldm.training.runs import lock
from ldm.training.runs.folder import DONE, is_run, run_names

STAGES = ("vae", "ldm")
ORDERLY_EXITS = (0, 130, 143, -15, -2)  # done, or ended by SIGINT or SIGTERM
UNREADABLE = (OSError, ValueError, RecursionError)  # what reading a damaged file raises; the last, deep nesting
POINTS = 400  # at most, in a curve
_STEP = re.compile(r"-?\d{1,18}", re.ASCII)  # what `int` reads, of a length that it reads
_LINE = re.compile(r"step (\d+)(?:/(\d+))?  loss (\S+)  (\d+) samples/s")


@dataclass(frozen=True)
class RunState:
    """The state of a run. `status` is running, finished or stopped; if the page started it, also starting or failed.

    `steps` are the planned ones, `pid` and `on_this_host` tell where it runs, `error` is the line that a failed run
    ended with.
    """

    stage: str
    name: str
    path: Path
    status: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    pid: int | None = None
    on_this_host: bool = True
    error: str = ""

    @property
    def key(self) -> str:
        """STAGE/NAME."""
        return f"{self.stage}/{self.name}"


def run_keys(runs_dir: Path) -> list[str]:
    """All runs as STAGE/NAME, the last changed first."""
    found = [f"{stage}/{name}" for stage in STAGES for name in run_names(stage, runs_dir)]
    return sorted(found, key=lambda key: _changed(runs_dir / key), reverse=True)


def run_folder(runs_dir: Path, key: str) -> Path:
    """The folder of the run STAGE/NAME. Raises UserError for anything else."""
    if key not in run_keys(runs_dir):
        raise UserError(f"there is no run {key} in {runs_dir}.")
    return runs_dir / key


def read_state(
    runs_dir: Path, key: str, log: Path | None = None, exit_code: int | None = None, starting: bool = False
) -> RunState:
    """The state of the run STAGE/NAME. If the page started it: `log` is what it printed, `exit_code` how its process
    ended, and `starting` whether the process is alive, which it may be before it locks its folder."""
    path, (stage, _, name) = runs_dir / key, key.partition("/")
    holder = lock.read(path)
    live = holder is not None and lock.is_live(holder)
    lines = tail(log, 60) if log else []
    status = _status(path, live, exit_code, starting)
    step, loss, rate = _latest(path, lines)
    errors = [line for line in lines if line.startswith("error:")]
    error = errors[-1] if errors and status == "failed" else ""
    return RunState(
        stage,
        name,
        path,
        status=status,
        step=step,
        steps=_planned(path),
        loss=loss,
        samples_per_s=rate if live else None,
        pid=int(holder["pid"]) if live and holder else None,
        on_this_host=holder is None or holder["host"] == socket.gethostname(),
        error=error,
    )


def _status(path: Path, live: bool, exit_code: int | None, starting: bool) -> str:
    if live:
        return "running"
    if starting:
        return "starting"
    if (path / DONE).exists():
        return "finished"
    return "stopped" if exit_code in (None, *ORDERLY_EXITS) else "failed"


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The columns of metrics.csv as (step, value), each thinned to at most about POINTS."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(path / "metrics.csv"):
        for name, value in row.items():
            if name and name != "step" and value and (number := _number(value)) is not None:
                found.setdefault(name, []).append((int(row["step"]), number))
    return {name: thinned(points) for name, points in found.items()}


def thinned(points: list[Any], most: int = POINTS) -> list[Any]:
    """At most about `most` of the points, evenly spaced, including the last."""
    every = -(-len(points) // most) if points else 1
    return points[::-every][::-1] if every > 1 else points


def sample_grids(path: Path, limit: int = 24) -> list[tuple[int, Path]]:
    """(step, file) of the sample grids of training, in order; if there are many, evenly spaced ones."""
    files = [file for file in (path / "samples").glob("step-*.png") if _STEP.fullmatch(file.stem[5:])]
    found = sorted((int(file.stem[5:]), file) for file in files if _is_own(file, path))
    return thinned(found, limit)


def evaluation(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Figures and images in the run's evaluation/; empty if it wasn't evaluated."""
    figures: dict[str, Any] = {}
    for file in sorted((path / "evaluation").glob("*.json")):
        try:
            read = json.loads(_text(file))
        except UNREADABLE:
            continue
        figures |= read if isinstance(read, dict) else {file.stem: read}
    return figures, sorted(file for file in (path / "evaluation").glob("*.png") if _is_own(file, path))


def config_of(path: Path) -> dict[str, Any]:
    """The run's config.yaml; empty if it can't be read."""
    try:
        read = yaml.safe_load(_text(path / "config.yaml"))
    except (*UNREADABLE, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; of a line that was overwritten, as progress bars do, only the last state."""
    try:
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n").rpartition("\r")[2] for line in deque(file, lines)]
    except OSError:
        return []


def memory_mb(pid: int) -> float | None:
    """The anonymous memory of a process in MB, without mapped data files; None if it isn't known."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(match[1]) / 1024 if match else None


def _latest(path: Path, lines: list[str]) -> tuple[int | None, float | None, float | None]:
    """The latest step, loss and samples per second, of the printed lines and of metrics.csv."""
    step, loss, rate = None, None, None
    for line in reversed(lines):
        if match := _LINE.match(line):
            step, loss, rate = int(match[1]), _number(match[3]), float(match[4])
            break
    for row in reversed(_rows(path / "metrics.csv")[-50:]):
        if (value := row.get("train/loss")) and (step is None or int(row["step"]) >= step):
            return int(row["step"]), _number(value), rate
    return step, loss, rate


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = csv.DictReader(io.StringIO(_text(path), newline=""))
        return [row for row in rows if _STEP.fullmatch(row.get("step") or "")]
    except (*UNREADABLE, csv.Error):
        return []


def _planned(path: Path) -> int | None:
    trainer = config_of(path).get("trainer")
    steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    return steps if isinstance(steps, int) and steps > 0 else None


def _text(path: Path) -> str:
    """The text of a file. Raises OSError for anything that isn't a regular file: a pipe or a device in a folder from
    elsewhere would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_text("utf-8")


def _is_own(file: Path, run: Path) -> bool:
    """Whether a file lies in the run's folder, so that a link in a folder from elsewhere shows no other file."""
    return file.is_file() and file.resolve().is_relative_to(run.resolve())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _changed(path: Path) -> float:
    """When the run last wrote something; minus infinity if it was removed in the meantime."""
    if not is_run(path):
        return -math.inf
    files = [path / "metrics.csv", path / "config.yaml", path / lock.NAME, path / DONE]
    return max((file.stat().st_mtime for file in files if file.exists()), default=-math.inf)
