"""Checkpoints that survive what happens while they are written."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ldm import artifact
from ldm.training.run import RunFolder, remove_checkpoint, write_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes into the target's own folder, flushes, then renames; a sidecar records size and SHA-256.

    Lightning's own way stages in the temporary folder and moves across file systems: a full disk then destroys the
    previous checkpoint. Reads with weights_only: a checkpoint is data.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_checkpoint(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Checkpoints(pl.Callback):
    """Saves every N optimizer steps and at the end, keeps the last few, and refreshes the run's model folder."""

    def __init__(self, folder: RunFolder, every_n_steps: int = 1000, keep_last: int = 2):
        self.folder, self.every, self.keep = folder, every_n_steps, keep_last
        self._saved = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if step == self._saved or step == 0:
            return
        self._saved = step
        path = self.folder.checkpoints / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            artifact.save(pl_module.model(), self.folder.model)
            for old in sorted(self.folder.checkpoints.glob("step-*.ckpt"))[: -self.keep]:
                remove_checkpoint(old)
