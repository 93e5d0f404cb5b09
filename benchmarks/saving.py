"""Saving a stage two, against the same state by `torch.save` and safetensors, both synced to disk.

Ours hashes what it writes, replaces checkpoint and model folder as a whole or not at all, and removes an older
checkpoint. The run is a DiT of some 100 M parameters with its average and AdamW's state: 2 GB, of which 0.4 are the
model folder's.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch

from benchmarks.paired import alternate, compared, rows, spread
from ldm.commands import cli
from ldm.training.runs.checkpoints import Checkpoints

WIDTH, PER_BLOCK = 768, 18 * 768**2  # a block's parameters: attention 4, MLP 8, modulation 6 times the width squared


def sync(path: Path) -> None:
    with open(path, "ab") as file:
        os.fsync(file.fileno())


def plain(trainer: pl.Trainer, task: Any, folder: Path) -> None:
    """Writes the same state once, without anything that proves it to be complete."""
    torch.save(trainer._checkpoint_connector.dump_checkpoint(False), folder / "plain.ckpt")
    sync(folder / "plain.ckpt")
    state = {name: tensor.contiguous() for name, tensor in task.saved().state_dict().items()}
    safetensors.torch.save_file(state, folder / "plain.safetensors")
    sync(folder / "plain.safetensors")


def timed(millions: int, rounds: int, runs: str) -> dict[str, list[float]]:
    """Seconds of each way of saving, at the end of a run of one step through the command line."""
    seconds: dict[str, list[float]] = {}

    def compare(self: Checkpoints, trainer: pl.Trainer, task: Any) -> None:
        def ours() -> None:
            self._saved = -1
            self.save(trainer, task)

        calls = {"ours": ours, "plain": lambda: plain(trainer, task, Path(runs))}
        seconds.update(alternate(calls, rounds, warm=0))

    own = Checkpoints.on_train_end
    Checkpoints.on_train_end = compare  # type: ignore[method-assign]
    try:
        network = ["network=dit", f"network.channels={WIDTH}", "network.heads=12"]
        network.append(f"network.depth={max(1, round(millions * 1e6 / PER_BLOCK))}")
        words = ["data=digits", "first_stage=identity", "batch_size=2", "trainer.max_steps=1", "logger=none"]
        words += ["trainer.limit_val_batches=1", "loader.val_samples=2"]
        words += ["samples.n=1", "diffusion.sampling.steps=1", "trainer.accelerator=cpu", f"runs_dir={runs}"]
        cli.run("train_ldm", [*words, *network])
    finally:
        Checkpoints.on_train_end = own  # type: ignore[method-assign]
    return seconds


def main(millions: int = 100, rounds: int = 5, where: str = "") -> dict[str, Any]:
    """`where` is a folder on the disk to measure; the system's temporary one otherwise."""
    with tempfile.TemporaryDirectory(dir=where or None) as runs:
        seconds = timed(millions, rounds, runs)
    times = spread([a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)])
    line = rows(compared(seconds), 1.0) | {f"ours / plain, {name}": value for name, value in times.items()}
    return {f"{millions} M parameters": line}
