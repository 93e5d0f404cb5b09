"""Where a run's figures go: metrics.csv, speed.csv and other loggers that the config names."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import append, atomic_write, sync
from ldm.training.runs.folder import RunFolder


class MetricsCsv(Logger):
    """A row for each call, appended at once, with a column for each figure; a resumed run goes on in the same file.

    Rows from step `start` on, where the run resumes, are dropped, so the file is what an uninterrupted run would have
    written. A new figure adds a column by rewriting the file, which mostly happens once, at the first validation.

    With `speed` it takes only the figures `speed/...`, which depend on the machine and differ from run to run;
    otherwise all but those.
    """

    def __init__(self, path: Path, start: int = 0, speed: bool = False):
        super().__init__()
        self.path, self.start, self.speed = path, start, speed
        self._names: list[str] = []

    @property
    def name(self) -> str:
        """Empty, so that the file lies in the run's folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty, since a run has only one file."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds a row at `step`. A new figure adds a column by rewriting the file."""
        own = {k: v for k, v in metrics.items() if k != "epoch" and k.startswith("speed/") == self.speed}
        row = {"step": str(step)} | {k: f"{v:.7g}" for k, v in own.items()}
        if self.speed and not own:
            return
        if not self._names:
            self._write([*(old for old in rows_of(self.path) if int(old["step"]) < self.start), row])
        elif row.keys() <= set(self._names):
            append(self.path, _lines(self._names, [row]))
        else:
            self._write([*rows_of(self.path), row])

    def _write(self, rows: list[dict[str, str]]) -> None:
        self._names = list(dict.fromkeys(name for row in rows for name in row))
        atomic_write(self.path, _lines(self._names, [dict(zip(self._names, self._names, strict=True)), *rows]))

    @rank_zero_only
    def save(self) -> None:
        """Called before a checkpoint is written, so that the rows before it survive a power cut."""
        if self._names:
            sync(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the last rows through to the disk."""
        self.save()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without empty cells and without a last row that a power cut has left incomplete."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8", errors="replace").rpartition("\n")[0]
    rows = csv.DictReader(line for line in whole.splitlines() if "\0" not in line)
    return [{k: v for k, v in row.items() if k and v} for row in rows if (row.get("step") or "").isdigit()]


def _lines(names: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, names).writerows(rows)
    return text.getvalue()


def loggers(config: dict[str, dict[str, Any]], folder: RunFolder, start: int = 0) -> list[Logger]:
    """The loggers that the config names, for a run from step `start` on.

    Raises UserError for an unknown logger, and for a missing package, with the extra that installs it.
    """
    made: list[Logger] = []
    for name, options in config.items():
        if name != "csv" and name not in _MAKERS:
            raise UserError(f"logger.{name} is unknown.{did_you_mean(name, ['csv', *_MAKERS])}")
        try:
            if name == "csv":
                made += [MetricsCsv(folder.metrics, start), MetricsCsv(folder.speed, start, speed=True)]
            else:
                made.append(_MAKERS[name](folder, options or {}))
        except ImportError as error:
            raise UserError(f'logger={name} needs a package: pip install "ldm[{name}]" ({error}).') from None
    return made


def _tensorboard(folder: RunFolder, options: dict[str, Any]) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(str(folder.path), name="", version="tensorboard", **options)


def _wandb(folder: RunFolder, options: dict[str, Any]) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(name=folder.path.name, save_dir=str(folder.path), **options)


def _mlflow(folder: RunFolder, options: dict[str, Any]) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(run_name=folder.path.name, **options)


_MAKERS = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
