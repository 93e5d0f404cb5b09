"""The objective of a search: a figure from the evaluation of the run that a job trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.config import overrides
from ldm.config.checking import checked
from ldm.config.compose import compose


def objective(config: Mapping[str, Any], stage: str, run: Path) -> float:
    """The figure that `config["objective"]` names in the run's evaluation.json; evaluates the run if it has none.

    A nested figure is named with dots, `a.b`. Raises UserError for a figure that isn't there.
    """
    report = run / "evaluation" / "evaluation.json"
    if not report.is_file():
        from ldm.commands.evaluate import main

        given = {"run": str(run.absolute()), "runs_dir": config["runs_dir"], "cache_dir": config["cache_dir"]}
        words = [f"++{key}={overrides.quote(value)}" for key, value in given.items()]
        main(checked("evaluate", *compose("evaluate", [*words, f"++stage={stage}"])))
    figures = _numbers(json.loads(report.read_text()))
    wanted = config["objective"]
    if wanted not in figures:
        raise UserError(f"objective={wanted}: {report} has no such figure.{did_you_mean(wanted, figures)}")
    return figures[wanted]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
