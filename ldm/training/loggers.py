"""Where a run's numbers go: metrics.csv always, and what the config names."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm.errors import UserError, did_you_mean
from ldm.files import atomic_write
from ldm.training.run import RunFolder


class MetricsCsv(Logger):
    """One row a call, `step,name,value,...` in wide form; a resumed run goes on in the same file.

    Rows from `start` on, the step that a run resumes from, are dropped, so the file is what an uninterrupted run would
    have written.
    """

    def __init__(self, path: Path, start: int = 0):
        super().__init__()
        self.path, self.start = path, start
        self._rows: list[dict[str, str]] | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._rows is None:
            self._rows = [row for row in _read(self.path) if int(row["step"]) < self.start]
        self._rows.append({"step": str(step)} | {k: f"{v:.7g}" for k, v in metrics.items() if k != "epoch"})
        if len(self._rows) % 20 == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self._rows)
        atomic_write(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def loggers(config: dict[str, dict[str, Any]], folder: RunFolder, start: int = 0) -> list[Logger]:
    """The loggers that the config names, for a run from step `start` on; a missing package is said with its extra."""
    made: list[Logger] = []
    for name, options in config.items():
        if name != "csv" and name not in _MAKERS:
            raise UserError(f"logger.{name} is unknown.{did_you_mean(name, ['csv', *_MAKERS])}")
        try:
            made.append(MetricsCsv(folder.metrics, start) if name == "csv" else _MAKERS[name](folder, options or {}))
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
