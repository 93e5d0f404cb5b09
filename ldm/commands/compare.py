"""Shows runs, or all jobs of a sweep, side by side in a table and a plot of their losses.

    ldm compare RUN_OR_SWEEP ... [out=compare.png]

    ldm compare runs/ldm/digits                       # every job of a sweep
    ldm compare runs/ldm/mine runs/ldm/other out=losses.png

The table has the options in which the runs differ, their last losses, their scores if they were evaluated, and their
time. The plot goes to out=, by default to compare.png in the first folder.

In a notebook, `table(read_runs(["runs/ldm/digits"]))` and `plot(...)` of this module display themselves.
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

# Options that always differ between runs, or are the place of a run: not worth a column.
_PLACES = {"name", "resume", "overwrite", "runs_dir", "cache_dir"}


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it: options by dotted key, curves by name, scores, and how long it took."""

    path: Path
    options: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    scores: dict[str, float]
    seconds: float | None  # None: unfinished
    finished: bool

    def last(self, name: str) -> float | None:
        """The last value of the curve `name`."""
        return self.curves[name][-1][1] if name in self.curves else None

    @property
    def steps(self) -> int:
        """The last step that any curve reached."""
        return max((curve[-1][0] for curve in self.curves.values()), default=0)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs at `paths`, each once; the folder of a sweep stands for its jobs, and also for itself if it is a run.

    Raises UserError for a folder that is neither.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        runs = sorted(inner for inner in path.glob("*") if is_run(inner))
        if is_run(path):
            runs.insert(0, path)
        if not runs:
            raise UserError(f"{path} is neither a run nor a sweep's folder: name folders such as runs/ldm/digits.")
        found += [run for run in runs if run not in found]
    return [read_run(path) for path in found]


def read_run(path: Path) -> Run:
    """One run, finished or not, with the scores of its newest evaluation; what it hasn't written yet is empty."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    done = path / "DONE"
    reports = [file for file in path.glob("evaluation*/evaluation.json") if "samples" not in file.parent.name]
    newest = max(reports, key=lambda file: file.stat().st_mtime, default=None)
    scores = scores_of(json.loads(newest.read_text())) if newest else {}
    seconds = done.stat().st_mtime - (path / "config.yaml").stat().st_mtime if done.is_file() else None
    return Run(
        path=path,
        options=flat(config),
        curves=read_curves(path / "metrics.csv"),
        scores=scores,
        seconds=seconds,
        finished=done.is_file(),
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
    """The figures of an evaluation.json that are single numbers; of figures of several seeds, the means."""
    scores = {}
    for name, figure in figures.items():
        value = figure.get("mean") if isinstance(figure, Mapping) else figure
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            scores[name] = value
    return scores


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
    """For each run a row of texts by column: its name, the options and scores that differ, steps, last losses, time."""
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
    """The rows as a table for a terminal or a notebook. Time is from the run's last start to its end."""
    from rich.table import Table

    lines = rows(runs)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in lines[0]:
        shown.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for line in lines:
        shown.add_row(*line.values())
    return shown


def plot(runs: Sequence[Run]) -> "Figure":
    """The runs' losses over their steps, in training and in validation."""
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
    """Prints the table and writes the plot. `words` are runs or sweeps, and perhaps out=FILE."""
    from rich.console import Console

    paths = [word for word in words if not word.startswith("out=")]
    outs = [word.partition("=")[2] for word in words if word.startswith("out=")]
    if not paths:
        raise UserError("compare needs runs or sweeps: write ldm compare RUN_OR_SWEEP ... [out=compare.png].")
    runs = read_runs(paths)
    Console(width=None if sys.stdout.isatty() else 200).print(table(runs))
    out = Path(outs[-1] if outs else Path(paths[0]) / "compare.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    plot(runs).savefig(out, dpi=120)
    print(f"plot: {out}")
