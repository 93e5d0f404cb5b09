"""`ldm compare runs/ldm/NAME ...`: runs, or all jobs of sweeps, side by side in a table and a plot.

In a notebook `table(read_runs(["runs/ldm/digits"]))` and `plot(...)` show themselves.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ldm.common.errors import UserError
from ldm.training.runs.folder import is_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

# What tells a run from another by itself, or says where it lies: no choice worth a column.
_PLACES = {"name", "resume", "overwrite", "runs_dir", "cache_dir"}


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it: its options by dotted key, its curves by name, its scores and its seconds."""

    path: Path
    options: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    scores: dict[str, float]
    seconds: float | None
    finished: bool

    def last(self, name: str) -> float | None:
        """The last value of the curve `name`."""
        return self.curves[name][-1][1] if name in self.curves else None

    @property
    def steps(self) -> int:
        return max((curve[-1][0] for curve in self.curves.values()), default=0)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs at `paths`; a folder of a sweep stands for its jobs, and for itself too where it is a run."""
    found: list[Path] = []
    for path in map(Path, paths):
        runs = [path] * is_run(path) + sorted(inner for inner in path.glob("*") if is_run(inner))
        if not runs:
            raise UserError(f"{path} is neither a run nor a sweep's folder: name folders such as runs/ldm/digits.")
        found += [run for run in runs if run not in found]
    return [read_run(path) for path in found]


def read_run(path: Path) -> Run:
    """One run, finished or not; what it hasn't written yet is empty."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    done = path / "DONE"
    reports = [file for file in path.glob("evaluation*/evaluation.json") if "samples" not in file.parent.name]
    newest = max(reports, key=lambda file: file.stat().st_mtime, default=None)
    scores = scores_of(json.loads(newest.read_text())) if newest else {}
    return Run(
        path,
        flat(config),
        read_curves(path / "metrics.csv"),
        scores,
        done.stat().st_mtime - (path / "config.yaml").stat().st_mtime if done.is_file() else None,
        done.is_file(),
    )


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The columns of a metrics.csv as (step, value) pairs."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                for name, value in row.items():
                    if value:
                        curves.setdefault(name, []).append((step, float(value)))
    return curves


def scores_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation.json that are one number, or the mean of several seeds'."""
    means = {name: value.get("mean") if isinstance(value, Mapping) else value for name, value in figures.items()}
    return {
        name: value for name, value in means.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def differing(runs: Sequence[Run]) -> list[str]:
    """The options that aren't the same in all runs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    return [key for key in keys if key not in _PLACES and len({json.dumps(run.options.get(key)) for run in runs}) > 1]


def rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A row of texts for each run: its name, the options and scores that differ, steps, last losses, time."""
    common = Path(*_shared_parts([run.path for run in runs]))
    options = differing(runs)
    losses = [name for name in ("train/loss", "val/loss") if any(name in run.curves for run in runs)]
    scores = list(dict.fromkeys(name for run in runs for name in run.scores))
    scores = [name for name in scores if len(runs) == 1 or len({run.scores.get(name) for run in runs}) > 1]
    return [
        {
            "run": str(run.path.relative_to(common)) if run.path != common else run.path.name,
            **{key: _shown(run.options.get(key)) for key in options},
            "steps": str(run.steps),
            **{name: _shown(run.last(name)) for name in losses},
            **{name: _shown(run.scores.get(name)) for name in scores},
            "time": "unfinished" if run.seconds is None else f"{run.seconds:.0f} s",
        }
        for run in runs
    ]


def _shared_parts(paths: Sequence[Path]) -> list[str]:
    parts = []
    for level in zip(*(path.parent.parts for path in paths), strict=False):
        if len(set(level)) > 1:
            break
        parts.append(level[0])
    return parts


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Run]) -> "Table":
    """The rows as a table that prints itself, in a terminal or a notebook. Time is from the last start to the end."""
    from rich.table import Table

    lines = rows(runs)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in lines[0]:
        shown.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for line in lines:
        shown.add_row(*line.values())
    return shown


def plot(runs: Sequence[Run]) -> "Figure":
    """The runs' losses over their steps, training's and validation's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    names = rows(runs)
    for axes, curve in zip(figure.subplots(1, 2), ("train/loss", "val/loss"), strict=True):
        for run, name in zip(runs, names, strict=True):
            if points := run.curves.get(curve):
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=name["run"])
        axes.set(xlabel="step", title=curve)
        if axes.lines:
            axes.legend(fontsize="x-small")
    return figure


def main(words: Sequence[str]) -> None:
    """Prints the table, and writes the plot to out=, by default compare.png in the first folder."""
    from rich.console import Console

    paths = [word for word in words if not word.startswith("out=")]
    outs = [word.partition("=")[2] for word in words if word.startswith("out=")]
    if not paths:
        raise UserError("compare needs runs or sweeps: ldm compare RUN_OR_SWEEP ... [out=compare.png].")
    runs = read_runs(paths)
    Console(width=None if sys.stdout.isatty() else 200).print(table(runs))
    out = Path(outs[-1] if outs else Path(paths[0]) / "compare.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    plot(runs).savefig(out, dpi=120)
    print(f"plot: {out}")
