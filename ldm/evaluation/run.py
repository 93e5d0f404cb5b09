"""`evaluate.py`: a trained run, measured on the validation split of the data it was trained with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ldm.artifact import to_json
from ldm.data.table import Table
from ldm.errors import UserError
from ldm.files import atomic_write
from ldm.images import grid
from ldm.loading import load
from ldm.networks import AutoencoderKL
from ldm.pipeline import LatentDiffusion
from ldm.registry import build
from ldm.sampling import device
from ldm.training.fit import cache_of, import_modules
from ldm.training.ldm_task import diffusion_loss
from ldm.training.run import find_run
from ldm.training.vae_task import psnr

OPTIONS = ("sampler", "steps", "guidance")


def main(config: dict[str, Any], job: str | None = None) -> dict[str, Any]:
    """Writes pictures and evaluation.json into the run's evaluation/, prints the figures and returns them."""
    path = find_run(config["stage"], config["run"], config["runs_dir"])
    model = load(path, device(config["device"]))
    train, val = data_of(path, config)
    out = Path(config["out"] or path / "evaluation")
    out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        if isinstance(model, AutoencoderKL):
            figures = measure_vae(model, val, config, out)
        elif isinstance(model, LatentDiffusion):
            figures = measure_ldm(model, train, val, config, out)
        else:
            raise UserError(f"{path} holds a {type(model).__name__}, which evaluate.py doesn't know.")
    atomic_write(out / "evaluation.json", to_json(figures))
    print("\n".join(f"{name}: {_shown(value)}" for name, value in figures.items()))
    print(f"pictures and figures: {out}", flush=True)
    return figures


def data_of(path: Path, config: Mapping[str, Any]) -> tuple[Table, Table]:
    """The data that the run was trained with, as its config.yaml names them."""
    try:
        trained = yaml.safe_load((path / "config.yaml").read_text())
    except OSError:
        raise UserError(f"{path} has no config.yaml that says what it was trained with; name a run folder.") from None
    import_modules(trained)
    return build(trained["data"], "data").tables(cache_of(config) / "data")


def measure_vae(vae: AutoencoderKL, val: Table, config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """PSNR of the reconstruction over all of validation, the KL of each latent channel, and pairs to look at."""
    errors, kl = [], []
    for images in _batches(val, config["batch_size"], next(vae.parameters()).device):
        posterior = vae.encode(images)
        errors.append((vae.decode(posterior.mode()).clamp(-1, 1) - images).square().flatten(1).mean(1))
        kl.append(posterior.kl().mean((2, 3)))
    some = val.batch(np.arange(min(16, len(val))), ["image"])["image"].to(errors[0].device)
    pairs = torch.stack([some, vae.decode(vae.encode(some).mode())], 1).flatten(0, 1)
    grid(pairs, 8).save(out / "reconstructions.png")
    return {
        "images": len(val),
        "PSNR in dB": float(psnr(torch.cat(errors).mean())),
        "KL of each latent channel in nats": torch.cat(kl).mean(0).tolist(),
    }


def measure_ldm(
    model: LatentDiffusion, train: Table, val: Table, config: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Validation loss, and pictures of validation's conditions beside the training images nearest to them."""
    here = model.latent_mean.device
    losses = []
    for start in range(0, len(val), config["batch_size"]):
        rows = np.arange(start, min(start + config["batch_size"], len(val)))
        batch = {
            k: v.to(here) if isinstance(v, Tensor) else v
            for k, v in val.batch(rows, ("image", *model.conditioner.needs)).items()
        }
        latents, position = model.encode(batch["image"]), torch.from_numpy(rows).to(here)
        losses.append(diffusion_loss(model.denoiser, model.conditioner(batch), latents, config["seed"] + 1, position))
    n = min(config["n"], len(val))
    given = val.batch(np.arange(n), model.conditioner.needs)
    given = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in given.items()}
    chosen = {key: config[key] for key in OPTIONS if config.get(key) is not None}
    images = model.draw(given, 1 if given else n, seed=config["seed"], batch_size=config["batch_size"], **chosen).cpu()
    near, distance = nearest(images[:16], train)
    grid(images, 16).save(out / "samples.png")
    grid(torch.stack([images[:16], near], 1).flatten(0, 1), 8).save(out / "nearest.png")
    return {
        "images": len(val),
        "validation loss": float(torch.cat(losses).mean()),
        "pictures": n,
        "seed": config["seed"],
        "RMS distance to the nearest training image": float(distance.mean()),
    }


def nearest(images: Tensor, table: Table, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """For each of `images` (N, C, H, W) the nearest of `table`, and the root mean square distance of a pixel value,
    (N,)."""
    flat = images.flatten(1)
    best, which = torch.full((len(images),), float("inf")), torch.zeros(len(images), dtype=torch.long)
    for start in range(0, len(table), chunk):
        rows = np.arange(start, min(start + chunk, len(table)))
        distance, index = torch.cdist(flat, table.batch(rows, ["image"])["image"].flatten(1)).min(1)
        which = torch.where(distance < best, index + start, which)
        best = torch.minimum(best, distance)
    return table.batch(which.numpy(), ["image"])["image"], best / flat.shape[1] ** 0.5


def _batches(table: Table, size: int, device: torch.device):
    for start in range(0, len(table), size):
        yield table.batch(np.arange(start, min(start + size, len(table))), ["image"])["image"].to(device)


def _shown(value: Any) -> str:
    return " ".join(f"{v:.3f}" for v in value) if isinstance(value, list) else json.dumps(value)
