"""Checkpoints that survive a full disk, a power cut or a signal while they are written."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ldm import artifact
from ldm.common.errors import UserError
from ldm.training.runs.best import Best
from ldm.training.runs.folder import RunFolder, remove_checkpoint, write_checkpoint
from ldm.training.runs.processes import gathered
from ldm.training.runs.signals import Stopped
from ldm.training.trainer.sharded import is_sharded, whole_weights


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes into the target's own folder, flushes, then renames; a file beside it records size and SHA-256.

    Lightning itself writes into the temporary folder and moves the file across file systems, so a full disk destroys
    the previous checkpoint. Reads with weights_only, since a checkpoint is data.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes under a temporary name and renames, so that no file is ever half a checkpoint."""
        write_checkpoint(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads tensors and plain data only; no code in the file is run."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Checkpoints(pl.Callback):
    """Saves every N optimizer steps, when a signal stops the run and at the end, and updates the run's model folder.

    The last `keep_last` checkpoints are kept, and all whose step is a multiple of `keep_every_n_steps`. A step is saved
    when the next one begins: everything that belongs to it, validation and logging included, is then done.

    `begins` is the checkpoint from which the run continues; of several processes, only the first has read it to the
    end. With `best`, the best step's checkpoint is kept too, and the model folder holds the best model instead of the
    last.
    """

    def __init__(
        self,
        folder: RunFolder,
        every_n_steps: int = 1000,
        keep_last: int = 2,
        keep_every_n_steps: int | None = None,
        begins: Path | None = None,
        best: Best | None = None,
    ):
        self.folder, self.every, self.begins, self.best = folder, every_n_steps, begins, best
        self.keep, self.keep_every = max(1, keep_last), keep_every_n_steps
        self._saved = self._model_saved = -1

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Before weights are read: raises UserError if the processes would continue from different checkpoints."""
        if stage != "fit":
            return
        chosen = gathered(self.begins.name if self.begins else "step 0")
        if any(name != chosen[0] for name in chosen):
            raise UserError(
                f"{self.folder.path}: the newest checkpoint is damaged, so the first process continues from "
                f"{chosen[0]}, but other processes had started with "
                f"{', '.join(sorted({*chosen} - {chosen[0]}))}. The damaged "
                "one has been removed: give the same command again."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Marks the step that a resumed run starts from as saved."""
        self._saved = trainer.global_step  # the checkpoint that a resumed run starts from exists
        if self.best_step == trainer.global_step:  # the run may have been killed before it saved this model
            self._save_model(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Saves every `every` steps and at the best step, between two optimizer steps."""
        due = self.every and trainer.global_step % self.every == 0
        if (due or self.best_step == trainer.global_step) and batch_idx % trainer.accumulate_grad_batches == 0:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the last step, and the model if a killed run hadn't got that far."""
        self.save(trainer, pl_module)
        if self._model_saved != trainer.global_step:  # killed before it got to this
            self._update_model(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The last validation, after training: the last step may be the best."""
        if trainer.state.fn == "validate" and self.best_step == trainer.global_step != self._model_saved:
            self._save_model(trainer, pl_module)
            self._prune(trainer)

    @property
    def best_step(self) -> int | None:
        """The step of the best model so far; None if no best one is looked for, or there is none yet."""
        return self.best.step if self.best else None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Saves where a signal has stopped the run."""
        if isinstance(exception, Stopped) and not exception.at_once:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the current step, unless that is done, and removes checkpoints that are no longer kept."""
        step = trainer.global_step
        if step == self._saved or step == 0:
            return
        for logger in trainer.loggers:
            logger.save()  # a resumed run appends to these rows
        path = self.folder.checkpoints / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self.folder.note_whole(path)
        self._saved = step
        self._update_model(trainer, pl_module)
        self._prune(trainer)

    def _prune(self, trainer: pl.Trainer) -> None:
        """Removes checkpoints that are no longer kept."""
        if not trainer.is_global_zero:
            return
        for old in sorted(self.folder.checkpoints.glob("step-*.ckpt"))[: -self.keep]:
            step = int(old.stem.removeprefix("step-"))
            if step != self.best_step and not (self.keep_every and step % self.keep_every == 0):
                remove_checkpoint(old)

    def _update_model(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the model of this step, unless an earlier one is better."""
        if self.best_step in (None, trainer.global_step):
            self._save_model(trainer, pl_module)

    def _save_model(self, trainer: pl.Trainer, pl_module: Any) -> None:
        model = pl_module.saved()
        weights = whole_weights(model, trainer.is_global_zero) if is_sharded(model) else None
        if trainer.is_global_zero:
            artifact.save(model, self.folder.model, weights)
        self._model_saved = trainer.global_step
