"""Which of Lightning's Trainer options a run sets itself, and what a user gives in their place."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError

FIXED: dict[str, Any] = {
    "max_epochs": -1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "inference_mode": False,  # weights that FSDP has gathered in this mode can't be gathered outside of it
    "num_sanity_val_steps": 0,
}
_ENDS = "a run ends after trainer.max_steps or trainer.max_time; give one of those."
_INSTEAD = {  # what to do instead of giving one of these options, or one that the run determines
    "max_epochs": _ENDS,
    "min_epochs": _ENDS,
    "min_steps": _ENDS,
    "enable_checkpointing": "a run saves its own checkpoints; checkpoint.X says how often and how many.",
    "enable_model_summary": "Lightning's summary isn't printed here; leave it out.",
    "use_distributed_sampler": "a run spreads its data over processes itself; leave it out.",
    "inference_mode": "validation runs under no_grad here, so that weights can be spread; leave it out.",
    "num_sanity_val_steps": "a run begins to train at once; leave it out.",
    "logger": "loggers are chosen with logger=default, wandb, mlflow or none; leave it out.",
    "callbacks": "a run has its own callbacks; leave it out.",
    "plugins": "a run has its own plugins; leave it out, and give trainer.precision or trainer.strategy.",
    "default_root_dir": "a run writes to its own folder, which name= and runs_dir= choose; leave it out.",
}


def check(trainer: Mapping[str, Any]) -> None:
    """Raises UserError for an option that a run sets itself, unless it has the value that the run sets."""
    for key, instead in _INSTEAD.items():
        value = trainer.get(key)
        if value is not None and not (key in FIXED and value == FIXED[key]):
            raise UserError(f"trainer.{key}={value}: {instead}")


def own(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are left to a user."""
    check(trainer)
    return {key: value for key, value in trainer.items() if key not in _INSTEAD}
