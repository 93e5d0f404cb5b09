"""`train_ldm.py`: trains stage two, or with finetune= fine-tunes a run of it, into runs/ldm/NAME."""

from pathlib import Path
from typing import Any

from ldm.evaluation.while_training import ImageDistance
from ldm.training import ldm_run
from ldm.training.finetune import run as finetune_run


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Trains the run that `config` describes, and returns its folder."""
    return (finetune_run if config.get("finetune") else ldm_run).main(config, job, ImageDistance)


def precheck(config: dict[str, Any]) -> Path | None:
    """The base of a fine-tuning, or the first stage (None: pixels). Raises UserError where that run doesn't exist."""
    return (finetune_run if config.get("finetune") else ldm_run).precheck(config)
