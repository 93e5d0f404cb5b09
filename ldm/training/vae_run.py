"""`train_vae.py`: one run of stage one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import build
from ldm.data.balance import say_balance
from ldm.data.storage.table import Table
from ldm.images import grid
from ldm.model.generate import sample_prior
from ldm.model.loading import load
from ldm.networks import Autoencoder
from ldm.networks.first_stages.base import check_size
from ldm.training import loss_mask, vae_base
from ldm.training.auto.settle import settle_loss, settle_vae
from ldm.training.prepared import Clock, PreparedRun, best_of, complete, open_folder, parameters_line, task_options
from ldm.training.regularizers import check_codebook
from ldm.training.runs import best, resume
from ldm.training.runs.folder import RunFolder
from ldm.training.trainer.callbacks import SampleGrids
from ldm.training.trainer.fit import cache_of, check_environment
from ldm.training.vae_base import precheck
from ldm.training.vae_task import VAETask

__all__ = ["main", "precheck"]
FIGURES = ("loss", "mse", "psnr", "kl", "commitment", "codebook_use", "perplexity", "lpips")
LOGGED = tuple(f"val/{name}" for name in FIGURES)  # in each validation


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Trains an autoencoder and leaves runs/vae/NAME with its model."""
    clock = Clock()
    precheck(config)
    best.check(config, LOGGED)
    check_environment(config)
    source = build(config["data"], "data")
    with open_folder("vae", source.name, config, job) as folder:
        if not folder.finished:
            complete(prepare(config, folder, source), folder, config, clock)
    return folder.path


def prepare(config: dict[str, Any], folder: RunFolder, source: Any) -> PreparedRun:
    """Prepares a run from the data to the task: replaces `auto` in `config`, and saves it."""
    train, val = source.tables(cache_of(config) / "data")
    loss_mask.check(config, (train, val))
    say_balance(config.get("balance"), train)
    start = resume.start_of(folder)
    channels, (height, width) = train.preprocess.channels, train.images.shape[2:]
    recorded = resume.recorded(folder, start)
    base = vae_base.settle(config, recorded, channels)
    settle_vae(config, recorded, channels=channels, size=(height, width), images=train.originals)
    settle_loss(config, recorded, channels=channels, side=min(height, width))
    vae = initial_autoencoder(config, base, train)
    check_codebook(config["codebook"], vae)
    depends_on = {"data": train.key}
    if config.get("base"):
        depends_on["base"] = config["base_hash"]
    start = resume.check(folder, config, depends_on, start)
    folder.save_config(config)
    decoder_only = config.get("train") == "decoder"
    trains = parameters_line(vae=vae)
    task = VAETask(
        vae,
        train.preprocess,
        config["beta"],
        terms=config["loss"],
        beta_warmup_steps=config["beta_warmup_steps"],
        decoder_only=decoder_only,
        codebook=config["codebook"],
        depends_on=depends_on,
        **task_options(config),
    )
    notes = [vae_base.NO_KL if decoder_only else task.regularizer.note(vae)]
    if base is not None:
        notes = vae_base.quality_lines(base, val, config) + notes
    sample = reconstruction_function(val, config["samples"]["n"])
    return PreparedRun(
        task,
        train,
        val,
        columns=("image", *loss_mask.columns_of(config)),
        samples=SampleGrids(folder, sample, columns=2, every_n_steps=config["samples"]["every_n_steps"]),
        start=start,
        trains=trains,
        notes=tuple(notes),
        after=lambda trainer: _report_model(trainer, task, folder, config),
        says_loss=False,
    )


def _report_model(trainer: pl.Trainer, task: VAETask, folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Prints the quality of the saved autoencoder, and writes samples of the prior."""
    vae = load(folder.model, task.device, precision="float32")
    save_prior(vae, config, folder.samples / "prior.png")
    chosen = best_of(trainer)
    if chosen is None or chosen.step == trainer.global_step:  # else the figures at hand are those of another model
        print_quality(task, trainer.callback_metrics)
    if task.decoder_only:
        print(vae_base.decoder_advice(folder.path), flush=True)


def initial_autoencoder(config: Mapping[str, Any], base: Autoencoder | None, table: Table) -> Autoencoder:
    """The autoencoder before the first step: the base's weights, or new ones fitted to the images."""
    torch.manual_seed(config["seed"])
    vae = build(config["vae"], "vae", in_channels=table.preprocess.channels)
    check_images(vae, table)
    if base is not None:
        vae.load_state_dict(base.state_dict())
    elif vae.starts_from_images and not config.get("base"):
        vae.start_from(some_images(table, config["seed"]))
    return vae


def check_images(vae: Autoencoder, table: Table) -> None:
    """Raises UserError for images whose size the autoencoder can't divide, or that it wouldn't compress."""
    height, width = table.images.shape[2:]
    check_size(height, width, vae.factor)
    if vae.latent_channels * (height // vae.factor) * (width // vae.factor) >= table.images[0].size:
        raise UserError(
            f"{vae.latent_channels} latent channels at a factor of {vae.factor} don't compress "
            f"{table.preprocess.channels} channels; take fewer vae.latent_channels."
        )


def some_images(table: Table, seed: int, most_values: int = 2**24) -> Tensor:
    """Random images for the covariance of patches: at most 4096, and at most 2^24 pixel values in all."""
    n = max(1, min(4096, len(table), most_values // table.images[0].size))
    return table.batch(np.sort(permutation(seed, 0, len(table))[:n]), ["image"])["image"]


def reconstruction_function(table: Table, n: int) -> Callable[[VAETask], Tensor]:
    """A function of the task that gives the first `n` images of `table`, each followed by its reconstruction."""
    images = table.batch(np.arange(min(n, len(table))), ["image"])["image"]

    @torch.no_grad()
    def reconstruct(task: VAETask) -> Tensor:
        """Each image followed by its reconstruction, (2n, C, H, W) in [-1, 1] on the CPU."""
        x = images.to(task.device)
        decoded = task.average.decode(task.average.encode(x).mode()).clamp(-1, 1)
        return torch.stack([x, decoded], 1).flatten(0, 1).cpu()  # (2n, C, H, W), pairs

    return reconstruct


def save_prior(vae: Autoencoder, config: Mapping[str, Any], path: Path) -> None:
    """Writes a grid of decoded samples of the prior, as many as in the run's other grids, since a large decoder takes
    seconds for each. If they can't be made, it only prints why: the run is complete without them.
    """
    images: Any = vae.preprocess
    n, seed, size = config["samples"]["n"], config["seed"], (images.height, images.width)
    try:
        decoded = sample_prior(vae, n, size, seed=seed, batch_size=config["batch_size"])
    except UserError as error:
        print(f"no {path.name}: {error}", flush=True)
        return
    grid(decoded, 8).save(path)


def print_quality(task: VAETask, metrics: Mapping[str, Tensor]) -> None:
    """Prints the quality that stage two will build on, from the metrics of the last validation."""
    if "val/psnr" not in metrics:
        return  # trainer.limit_val_batches=0
    psnr = f"{float(metrics['val/psnr']):.2f} dB PSNR of the reconstruction"
    for line in (f"validation: {psnr}, the mean of {task.validated} images", *task.regularizer.quality(metrics)):
        print(line, flush=True)
