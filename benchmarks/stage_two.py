"""Images a second of stage two through the command line, beside bare loops; and of encoding latents.

A step of the run alternates with a step of a bare loop in the same process: the same networks on the same latents with
nothing around them but loss, gradients and AdamW, without average, clipping, logs, checkpoints or data. Beside them a
training loop as diffusers' scripts have it, which encodes its images at every step: the same widths, their classes.
"""

import copy
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.paired import Call, alternate, compared, rows, stepper
from benchmarks.vae_step import default_vae, diffusers_vae
from ldm.commands import cli
from ldm.data.caches.latents import encode_table
from ldm.data.sources.emoji import Emoji
from ldm.training.ldm_task import DiffusionTask

BATCH = 32


def bare_loop(task: DiffusionTask, batch: dict[str, Any]) -> Call:
    trained, x0 = copy.deepcopy(task.trained), task.latents(batch, 0)
    conditioner, denoiser = trained["conditioner"], trained["denoiser"]

    def loss() -> torch.Tensor:
        return denoiser.loss(x0, torch.randn_like(x0), torch.rand(len(x0)) + 0.1, conditioner(batch)).mean()

    return stepper(trained, loss, fused=True)


def diffusers_loop(widths: list[int], images: torch.Tensor, tokens: torch.Tensor) -> Call:
    """As examples/text_to_image: encode, add noise, predict it. The text's states are given, which costs it nothing."""
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * len(widths)}
    kinds |= {"up_block_types": ("CrossAttnUpBlock2D",) * len(widths)}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=tokens.shape[2],
        attention_head_dim=4,
        **kinds,
    )
    vae, scheduler = diffusers_vae().eval().requires_grad_(False), diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-4)

    def step() -> None:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
        F.mse_loss(unet(scheduler.add_noise(latents, noise, t), t, tokens).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Interleaved:
    """Runs a bare step after each step of a run, and records the seconds of both."""

    def __init__(self, warm: int = 5):
        self.calls: dict[str, Call] = {}
        self.seconds: dict[str, list[float]] = {"ours": []}
        self.since: float | None = None
        self.warm = warm

    def begin(self, task: DiffusionTask, batch: dict[str, Any]) -> None:
        widths = task.trained["denoiser"].network.widths
        images = torch.rand(BATCH, 3, 32, 32) * 2 - 1
        tokens = task.trained["conditioner"](batch).tokens.detach()
        self.calls = {"bare loop": bare_loop(task, batch), "diffusers": diffusers_loop(widths, images, tokens)}
        self.seconds |= {name: [] for name in self.calls}

    def after_step(self, task: DiffusionTask, batch: dict[str, Any]) -> None:
        if self.since is not None:
            self.seconds["ours"].append(time.perf_counter() - self.since)
            for name, call in self.calls.items():
                start = time.perf_counter()
                call()
                self.seconds[name].append(time.perf_counter() - start)
        elif task.global_step >= self.warm:
            self.begin(task, batch)
        if self.calls:
            self.since = time.perf_counter()


def end_to_end(steps: int, runs: str) -> dict[str, Any]:
    """A run of `experiment=emoji` by the command line, its steps timed between a step of each loop."""
    clock, own = Interleaved(), DiffusionTask.on_train_batch_end

    def timed(self: DiffusionTask, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        own(self, outputs, batch, batch_idx)
        clock.after_step(self, batch)

    DiffusionTask.on_train_batch_end = timed  # type: ignore[method-assign]
    try:
        words = ["data=emoji", f"runs_dir={runs}", "trainer.max_time=null", f"batch_size={BATCH}"]
        cli.run("train_vae", [*words, "trainer.max_steps=10", "logger=none"])
        cli.run("train_ldm", [*words, "network=unet", f"trainer.max_steps={steps}"])
    finally:
        DiffusionTask.on_train_batch_end = own  # type: ignore[method-assign]
    seconds = {name: values[: len(clock.seconds["ours"])] for name, values in clock.seconds.items()}
    found = compared(seconds)
    return found | {f"{name}, images/s": BATCH / median(values) for name, values in seconds.items()}


def caching(rounds: int, n: int = 512) -> dict[str, Any]:
    """Encoding n scenes into the cache, by our default autoencoder and by diffusers' (32, 64, 64)."""
    with tempfile.TemporaryDirectory() as folder:
        train, _ = Emoji(n=n, val_n=16).tables(Path(folder))
        ours, theirs = default_vae().eval(), diffusers_vae().eval()

        def cached() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                encode_table(train, ours, Path(work), 64)

        @torch.inference_mode()
        def looped() -> None:
            for index in np.arange(n).reshape(-1, 64):
                theirs.encode(train.batch(index, ["image"])["image"]).latent_dist.parameters.numpy()

        seconds = alternate({"ours": cached, "diffusers": looped}, rounds)
    speed = {f"{name}, images/s": n / median(values) for name, values in seconds.items()}
    return compared(seconds) | speed


def main(steps: int = 80, rounds: int = 5) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as runs:
        trained = end_to_end(steps, runs)
    return {"train_ldm.py": rows(trained, 1.0), "caching latents": rows(caching(rounds), 1.0)}
