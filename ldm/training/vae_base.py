"""`train_vae.py base=... train=all|decoder`: stage one, starting from a trained autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.artifact import model_hash
from ldm.common.devices import temporarily_on
from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.ranks import rank
from ldm.common.registry import spec_of
from ldm.data.storage.table import Table
from ldm.model.latent_space import autoencoder
from ldm.model.loading import load
from ldm.networks import Autoencoder
from ldm.training.runs.folder import find_run
from ldm.training.trainer.fit import device_for
from ldm.training.vae_task import psnr

NO_KL = (
    "train=decoder: the encoder doesn't change, so the loss is only that of the reconstruction, and beta, the "
    "weight of the KL term, isn't used"
)


def precheck(config: Mapping[str, Any]) -> Path | None:
    """The path of the base; None without one. Raises UserError if it doesn't exist, before any work."""
    base, decoder = config.get("base"), config.get("train") == "decoder"
    if decoder and not base:
        raise UserError(
            "train=decoder needs an autoencoder whose encoder is kept: name it with base=, as in base=emoji."
        )
    return find_run("vae", base, config["runs_dir"]) if base and not config["resume"] else None


def settle(config: dict[str, Any], recorded: Mapping[str, Any], channels: int) -> Autoencoder | None:
    """Puts the base's sizes and its hash into the config, and returns the base.

    None without a base, and for a run that is resumed (`recorded` is its config), whose checkpoint has all weights.
    """
    base = config.get("base")
    if recorded and recorded.get("base") != base:
        was = f"began with base={recorded['base']}" if recorded.get("base") else "began without base="
        raise UserError(
            f"the run {was}, and can only be resumed so: give the same base, or start again with overwrite=true "
            "or another name=."
        )
    if not base:
        return None
    if recorded:
        config |= {key: recorded[key] for key in ("vae", "base_hash")}
        return None
    vae = open_base_autoencoder(find_run("vae", base, config["runs_dir"]), channels)
    config["vae"] = {key: value for key, value in spec_of(vae).items() if key != "in_channels"}
    config["base_hash"] = model_hash(vae)
    if config["optimizer"]["lr"] == "auto":  # large first steps would destroy what the base has learned
        config["optimizer"] = config["optimizer"] | {"lr": rate_for(vae)}
    print(
        f"starts from {base} (hash {config['base_hash'][:12]}) with its sizes: factor {vae.factor}, "
        f"{vae.latent_channels} latent channels",
        flush=True,
    )
    return vae


def rate_for(vae: Autoencoder) -> float:
    """1e-3 for a network 64 wide, less for wider ones: 1.25e-4 for Stable Diffusion's."""
    return round(min(1e-3, 1e-3 * 64 / vae.width), 6)


def open_base_autoencoder(path: Path, channels: int) -> Autoencoder:
    """The autoencoder at `path`, or the first stage of a whole model there, for images of that many channels."""
    vae = autoencoder(load(path, precision="float32"), f"base={path}")
    if vae.in_channels != channels:
        raise UserError(
            f"base={path} takes images of {vae.in_channels} channels, but the data's have {channels}: prepare "
            f"the data with data.channels={vae.in_channels}, or use another base=."
        )
    return vae


@torch.no_grad()
def quality_lines(vae: Autoencoder, val: Table, config: Mapping[str, Any], most_pixels: int = 2**21) -> list[str]:
    """A line about the base's PSNR on the data before it is trained, in the first process only.

    It is measured on as many validation images as have 2^21 pixels together, but on at least 8.
    """
    _, height, width = val.images.shape[1:]
    n = min(config["loader"]["val_samples"], len(val), max(8, most_pixels // (height * width)))
    if not n or rank() > 0:
        return []
    device, errors = device_for(config), []
    with temporarily_on(vae, device):
        for rows in np.array_split(permutation(0, 0, len(val))[:n], -(-n // 8)):
            images = val.batch(rows, ["image"])["image"].to(device)
            decoded = vae.decode(vae.encode(images).mode())
            errors.append((decoded - images).square().mean((1, 2, 3)).cpu())
    mean = psnr(torch.cat(errors)).mean()
    return [f"before training: {mean:.2f} dB PSNR, the mean of {n} validation images"]


def decoder_advice(path: Path) -> str:
    """A line about how to use a decoder that was trained alone."""
    return (
        "the encoder is the base's, bit for bit, so cached latents and models of stage two remain valid. "
        f"model.load_decoder('{path}'), or sample.py decoder={path.name}, gives such a model this decoder"
    )
