"""Figures of generated images in validation: `val/fd`, a distance, and `val/memorised`, the share of copies."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning.pytorch as pl

from ldm.common.errors import UserError
from ldm.training.trainer.sharded import is_sharded

log = logging.getLogger("ldm")
FIGURES = ("val/fd", "val/memorised")
N = 128  # generated images, unless the config gives another number
RISE = 0.05  # of the share of copies, from which it is worth a sentence


class Measure(Protocol):
    """A function of a model that gives `fd`, and `memorised` where it is watched. `of_real` is the share of held-out
    real images that would count as copies. As a string, it describes what is measured."""

    of_real: float

    def __call__(self, model: Any) -> dict[str, float]: ...


MeasureOf = Callable[[Any, Mapping[str, Any]], Measure]  # (tables, config) -> what measures


def settle_distance(config: dict[str, Any]) -> None:
    """Fills in `distance.n` where it isn't given. Raises UserError if the best model is to be chosen by a figure of
    generated images and there are none."""
    distance, figure = config["distance"], config["checkpoint"].get("best")
    if distance["n"] is None:
        distance["n"] = N if figure in FIGURES else 0
    if figure in FIGURES and not distance["n"]:
        raise UserError(
            f"checkpoint.best={figure} measures generated images, and distance.n=0 makes none: leave it out."
        )


def measures_images(config: Mapping[str, Any]) -> bool:
    """Whether validation measures generated images."""
    return bool((config.get("distance") or {}).get("n"))


class Measured(pl.Callback):
    """Measures the average model in each validation, logs the figures as `val/...`, and warns if the model memorises
    training images.

    A step is measured once, although a run validates its last step twice. Several processes share the figures of the
    first.
    """

    def __init__(self, measure: Measure):
        self.measure = measure
        self.figures: dict[str, float] = {}
        self.step = -1
        self.said = measure.of_real  # the highest share of copies that was said

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Shows the figures of a resumed run's last validation."""
        pl_module.measured = dict(self.figures)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures this step unless that is done, and logs the figures."""
        if self.step != trainer.global_step:
            self.figures, self.step = trainer.strategy.broadcast(self._of(trainer, pl_module)), trainer.global_step
            pl_module.measured = dict(self.figures)
            if sentence := self._rise():
                trainer.print(f"step {self.step}: {sentence}", flush=True)
        pl_module.log_dict({f"val/{name}": value for name, value in self.figures.items()})

    def state_dict(self) -> dict[str, Any]:
        """The last figures, their step, and the share of copies that was reported last."""
        return {"figures": self.figures, "step": self.step, "said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.figures, self.step, self.said = state_dict["figures"], state_dict["step"], state_dict["said"]

    def _of(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        """The figures, on the first process; sharded networks generate on all of them."""
        if not (trainer.is_global_zero or is_sharded(pl_module)):
            return {}
        try:
            return self.measure(pl_module.model())
        except UserError as error:  # images that aren't finite
            log.warning("no val/fd at step %d: %s", trainer.global_step, error)
            return {"fd": math.inf}

    def _rise(self) -> str:
        """A warning if clearly more images are copies than were reported before, else ""."""
        share = self.figures.get("memorised", 0.0)
        if share < self.said + RISE:
            return ""
        before, self.said = self.said, share
        whose = "of held-out real images" if before == self.measure.of_real else "before"
        return (
            f"{share:.0%} of the generated images are copies of training images (val/memorised; {before:.0%} {whose}). "
            "The model begins to memorise them: checkpoint.best=val/fd keeps an earlier model; more "
            "images, data.augment= or a smaller network delay that."
        )
