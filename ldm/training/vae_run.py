"""`train_vae.py`: one run of stage one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import build
from ldm.data.storage.table import Table
from ldm.images import grid
from ldm.model.generate import sample_prior
from ldm.model.loading import load
from ldm.networks import AutoencoderKL
from ldm.networks.autoencoder import check_size
from ldm.training import auto, vae_base
from ldm.training.runs import resume
from ldm.training.trainer.callbacks import Pictures
from ldm.training.trainer.fit import Clock, batches, begin, cache_of, fit, open_named, parameters_line, task_options
from ldm.training.vae_base import precheck
from ldm.training.vae_task import VAETask, equivalents

__all__ = ["main", "precheck"]


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Trains an autoencoder and leaves runs/vae/NAME with its model."""
    clock = Clock()
    precheck(config)
    begin(config)
    source = build(config["data"], "data")
    with open_named("vae", source.name, config, job) as folder:
        if folder.finished:
            return folder.path
        train, val = source.tables(cache_of(config) / "data")
        start = resume.start_of(folder)
        height, width = train.images.shape[2:]
        recorded = resume.recorded(folder, start)
        base = vae_base.settle(config, recorded, train.preprocess.channels)
        auto.settle_vae(config, recorded, train.preprocess.channels, (height, width), len(train))
        vae = begun(config, base, train)
        depends_on = {"data": train.key} | ({"base": config["base_hash"]} if config.get("base") else {})
        start = resume.check(folder, config, depends_on, start)
        folder.save_config(config)
        print(f"{folder.path}: {len(train)} images, {len(val)} for validation; {parameters_line(vae=vae)}", flush=True)
        if base is not None:
            vae_base.tell_start(base, val, config)
        decoder_only = config.get("train") == "decoder"
        print(vae_base.NO_KL if decoder_only else equivalents(config["beta"], vae), flush=True)
        options = task_options(config)
        terms = (config["loss"], config["beta_warmup_steps"], decoder_only)
        task = VAETask(vae, train.preprocess, config["beta"], *terms, depends_on=depends_on, **options)
        pictures = Pictures(folder, reconstructions(val, config["samples"]["n"]), 2, config["samples"]["every_n_steps"])
        trainer = fit(task, batches(train, val, ("image",), config), folder, config, pictures, clock.started, start)
        if trainer.is_global_zero:
            vae = load(folder.model, task.device, precision="float32")
            save_prior(vae, config, folder.samples / "prior.png")
            report(vae, trainer.callback_metrics, task.validated)
            if decoder_only:
                print(vae_base.what_for(folder.path), flush=True)
            folder.finish()
            print(f"{folder.path}: {trainer.global_step} steps in {clock}", flush=True)
    return folder.path


def begun(config: Mapping[str, Any], base: AutoencoderKL | None, table: Table) -> AutoencoderKL:
    """The autoencoder as it is before the first step: the base's weights, or fresh ones fitted to the images."""
    torch.manual_seed(config["seed"])
    vae = build(config["vae"], "vae", in_channels=table.preprocess.channels)
    check(vae, table)
    if base is not None:
        vae.load_state_dict(base.state_dict())
    elif vae.shortcut_in is not None and not config.get("base"):
        vae.start_from_principal_components(some_images(table, config["seed"]))
    return vae


def check(vae: AutoencoderKL, table: Table) -> None:
    """Refuses images that the autoencoder can't halve, before any training."""
    height, width = table.images.shape[2:]
    check_size(height, width, vae.factor)
    if vae.latent_channels * (height // vae.factor) * (width // vae.factor) >= table.images[0].size:
        raise UserError(
            f"{vae.latent_channels} latent channels at a factor of {vae.factor} don't compress "
            f"{table.preprocess.channels} channels; take fewer vae.latent_channels."
        )


def some_images(table: Table, seed: int, most_values: int = 2**24) -> Tensor:
    """Images drawn at random, as many as make 2^24 pixel values, at most 4096: enough for the covariance of patches."""
    n = max(1, min(4096, len(table), most_values // table.images[0].size))
    return table.batch(np.sort(permutation(seed, 0, len(table))[:n]), ["image"])["image"]


def reconstructions(table: Table, n: int):
    """A function of the task that draws the first `n` images of `table` beside their reconstructions."""
    images = table.batch(np.arange(min(n, len(table))), ["image"])["image"]

    @torch.no_grad()
    def draw(task: VAETask) -> Tensor:
        x = images.to(task.device)
        decoded = task.average.decode(task.average.encode(x).mode()).clamp(-1, 1)
        return torch.stack([x, decoded], 1).flatten(0, 1).cpu()  # (2n, C, H, W), pairs

    return draw


def save_prior(vae: AutoencoderKL, config: Mapping[str, Any], path: Path) -> None:
    """Decoded draws of N(0, 1), as many as the run's other pictures: a large decoder takes seconds for each. The run
    is done without them."""
    images: Any = vae.preprocess
    n = config["samples"]["n"]
    try:
        drawn = sample_prior(vae, n, (images.height, images.width), config["seed"], config["batch_size"])
    except UserError as error:
        print(f"no {path.name}: {error}", flush=True)
        return
    grid(drawn, 8).save(path)


def report(vae: AutoencoderKL, metrics: Mapping[str, Tensor], images: int) -> None:
    """Prints what stage two will stand on, by the metrics of that many images."""
    if "val/psnr" not in metrics:
        return  # trainer.limit_val_batches=0
    kl = [float(metrics[f"val/kl_channel_{i}"]) for i in range(vae.latent_channels)]
    psnr = f"{float(metrics['val/psnr']):.2f} dB PSNR of the reconstruction"
    print(f"validation: {psnr}, the mean of {images} images", flush=True)
    print("KL of each latent channel in nats an element: " + " ".join(f"{value:.3f}" for value in kl), flush=True)
    if dead := [i for i, value in enumerate(kl) if value < 0.01]:
        print(f"channels {dead} carry nothing (KL below 0.01): beta is high for this many latent_channels", flush=True)
