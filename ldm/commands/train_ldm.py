"""`train_ldm.py`: stage two, or with finetune= a fine-tuning of one, in runs/ldm/NAME."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.training import ldm_run
from ldm.training.finetune import run as finetune_run


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Trains what `config` describes, and returns the run's folder."""
    return (finetune_run if config.get("finetune") else ldm_run).main(config, job)


def precheck(config: Mapping[str, Any]) -> Path | None:
    """The base of a fine-tuning, or the first stage (None: pixels). Raises UserError where it isn't there."""
    return (finetune_run if config.get("finetune") else ldm_run).precheck(config)
