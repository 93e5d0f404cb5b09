"""Seconds of a training step on this machine, measured on networks that are thrown away."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.common.randomness import permutation
from ldm.conditioning import Conditioner
from ldm.data.storage.table import Table
from ldm.diffusion import Denoiser
from ldm.networks import Autoencoder
from ldm.training.regularizers import regularizer_of
from ldm.training.trainer.speed import precision_of

_LONG = 5.0  # seconds after which no further step is measured
_PART = 4  # a CPU is measured on a quarter of a batch, as its time is proportional to the images


@dataclass(frozen=True)
class Seconds:
    """Seconds of a training `step`, and of the `forward` pass that encodes equally many images."""

    step: float
    forward: float = 0.0


def vae_seconds(vae: Autoencoder, table: Table, config: Mapping[str, Any], device: torch.device) -> Seconds:
    """The time of a step of stage one, without terms of the loss that need other networks."""
    vae.to(device)
    optimizer, regularizer = torch.optim.AdamW(vae.parameters(), lr=1e-4), regularizer_of(vae, 1e-4).to(device)
    n, share = _part(config["batch_size"], device)
    images = table.batch(_rows(table, n), ["image"])["image"].to(device)

    def step() -> None:
        """One training step of the autoencoder."""
        with _autocast(config, device):
            posterior = vae.encode(images)
            decoded = vae.decode(posterior.sample())
            loss = (decoded - images).square().mean() + regularizer(vae, posterior, torch.mean, 0)[0]
        _update(optimizer, loss)

    @torch.no_grad()
    def encode() -> None:
        """Encodes a batch, as caching does."""
        vae.encode(images)

    return Seconds(share * _timed(step, config["steps"], device), share * _timed(encode, 1, device))


def network_seconds(
    denoiser: Denoiser,
    conditioner: Conditioner,
    table: Table,
    config: Mapping[str, Any],
    *,
    vae: Autoencoder,
    device: torch.device,
) -> Seconds:
    """The time of a step of stage two on cached latents, which are random here."""
    networks = nn.ModuleList([denoiser, conditioner]).to(device)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-4)
    n, share = _part(config["batch_size"], device)
    height, width = table.images.shape[2:]
    shape = (n, vae.latent_channels, height // vae.factor, width // vae.factor)
    x0, noise, quantiles = torch.randn(shape, device=device), torch.randn(shape, device=device), torch.rand(n)
    sigma = denoiser.noise.sigma(quantiles, denoiser.parameterization).to(device)
    batch = table.batch(_rows(table, n), conditioner.needs) | {"position": torch.arange(n)}
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    batch = conditioner.prepare(batch, lambda images: vae.encode(images).mode().detach(), 0)

    def step() -> None:
        """One training step of the denoiser."""
        with _autocast(config, device):
            loss = denoiser.loss(x0, noise, sigma, conditioner(batch)).mean()
        _update(optimizer, loss)

    return Seconds(share * _timed(step, config["steps"], device))


def _part(batch_size: int, device: torch.device) -> tuple[int, float]:
    """The number of images that are measured, and how many times as many a batch has."""
    n = max(2, batch_size // _PART) if device.type == "cpu" else batch_size
    return n, batch_size / n


def _rows(table: Table, n: int) -> np.ndarray:
    """Random rows (n,). Rows are repeated if the table has fewer than n."""
    return np.resize(permutation(0, 0, len(table)), n)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _autocast(config: Mapping[str, Any], device: torch.device) -> Any:
    options = config["trainer"]
    precision = str(precision_of(options.get("precision"), options.get("accelerator") or "auto"))
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def _timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """The median time of `count` steps after a first one; if the first one takes long, its time."""
    times: list[float] = []
    for _ in range(count + 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if sum(times) > _LONG:
            break
    return float(np.median(times[1:] or times))
