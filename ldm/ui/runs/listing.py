"""What a run's folder says of it: how it stands, its curves, its pictures, its report. Reads only."""

import csv
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
POINTS = 400  # of a curve
_LINE = re.compile(r"step (\d+)(?:/(\d+))?  loss (\S+)  (\d+) samples/s")


@dataclass(frozen=True)
class RunState:
    """How a run stands. `status` is running, finished or stopped; or, where the page started it, starting or failed."""

    stage: str
    name: str
    path: Path
    status: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    pid: int | None = None
    here: bool = True
    said: str = ""

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}"


def keys(runs_dir: Path) -> list[str]:
    """All runs as STAGE/NAME, the one that changed last first."""
    found = [f"{stage}/{name}" for stage in STAGES for name in run_names(stage, runs_dir)]
    return sorted(found, key=lambda key: _changed(runs_dir / key), reverse=True)


def folder(runs_dir: Path, key: str) -> Path:
    """The folder of the run STAGE/NAME; nothing else can be named."""
    if key not in keys(runs_dir):
        raise UserError(f"there is no run {key} in {runs_dir}.")
    return runs_dir / key


def state(
    runs_dir: Path, key: str, log: Path | None = None, exit_code: int | None = None, starting: bool = False
) -> RunState:
    """How the run STAGE/NAME stands; `log` is what it printed, where the page started it. `starting`: its process
    lives, whether it holds its folder yet or not."""
    path, (stage, _, name) = runs_dir / key, key.partition("/")
    holder = lock.read(path)
    live = holder is not None and lock.is_live(holder)
    lines = tail(log, 60) if log else []
    status = "running" if live else "starting" if starting else "finished" if (path / DONE).exists() else "stopped"
    if status == "stopped" and exit_code not in (None, 0, 130, 143, -15, -2):
        status = "failed"
    step, loss, rate = _latest(path, lines)
    return RunState(
        stage,
        name,
        path,
        status,
        step,
        _planned(path),
        loss,
        rate if live else None,
        int(holder["pid"]) if live and holder else None,
        holder is None or holder["host"] == socket.gethostname(),
        next((line for line in reversed(lines) if line.startswith("error:")), "") if status == "failed" else "",
    )


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The columns of metrics.csv as (step, value), each thinned to at most POINTS."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(path / "metrics.csv"):
        for name, value in row.items():
            if name and name != "step" and value and (number := _number(value)) is not None:
                found.setdefault(name, []).append((int(row["step"]), number))
    return {name: thinned(points) for name, points in found.items()}


def thinned(points: list[Any], most: int = POINTS) -> list[Any]:
    """At most about `most` of the points, evenly taken, the last among them."""
    every = -(-len(points) // most) if points else 1
    return points[::-every][::-1] if every > 1 else points


def sample_grids(path: Path, limit: int = 24) -> list[tuple[int, Path]]:
    """(step, file) of the grids drawn while training, in their order; of many, evenly taken ones."""
    found = sorted(
        (int(file.stem[5:]), file) for file in (path / "samples").glob("step-*.png") if file.stem[5:].isdigit()
    )
    return thinned(found, limit)


def evaluation(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Figures and pictures of the run's evaluation/; empty where it was not evaluated."""
    figures: dict[str, Any] = {}
    for file in sorted((path / "evaluation").glob("*.json")):
        try:
            read = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        figures |= read if isinstance(read, dict) else {file.stem: read}
    return figures, sorted((path / "evaluation").glob("*.png"))


def config_of(path: Path) -> dict[str, Any]:
    """The run's config.yaml, or nothing where it can't be read."""
    try:
        read = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; of a line that was written over, as a bar does, the last state."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n").rpartition("\r")[2] for line in deque(file, lines)]
    except OSError:
        return []


def memory_mb(pid: int) -> float | None:
    """The anonymous memory of a process in MB: mapped data files aren't the process's own."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(match[1]) / 1024 if match else None


def _latest(path: Path, lines: list[str]) -> tuple[int | None, float | None, float | None]:
    """Step, loss and samples per second as said last: by the printed lines, or else by metrics.csv."""
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
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").lstrip("-").isdigit()]
    except (OSError, ValueError, csv.Error):
        return []


def _planned(path: Path) -> int | None:
    steps = (config_of(path).get("trainer") or {}).get("max_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _changed(path: Path) -> float:
    """When the run last wrote something; a run that was removed meanwhile comes last."""
    files = [path / "metrics.csv", path / "config.yaml", path / lock.NAME, path / DONE]
    return (
        max((file.stat().st_mtime for file in files if file.exists()), default=-math.inf) if is_run(path) else -math.inf
    )
