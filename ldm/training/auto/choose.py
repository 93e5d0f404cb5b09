"""Sizes of networks and batches that suit the images, the machine and the time limit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ldm.common.devices import available
from ldm.training.auto.count import network_flops, vae_flops
from ldm.training.runs.resume import limit_of, steps_of
from ldm.training.trainer.costs import peak_of
from ldm.training.trainer.speed import precision_of

# Operations per second in training, as measured: two cores without AVX-512 reach 70e9 in the demo's Transformer. A GPU
# is taken to reach three tenths of its data sheet's figure, half of what good kernels reach on large matrices, because
# small networks wait for memory.
CPU_CORE = 35e9
SHARE_OF_PEAK = 0.3
OTHER_GPU = 5e12  # for unknown cards, and MPS

PREPARATION = 0.9  # the share of the time limit that goes to steps: the rest loads, validates, samples and saves
ENOUGH = 1800  # steps of stage two below which a smaller network does better in the same time
FEWEST = 1500  # steps of stage two below which samples are rarely more than noise or smears: a warning is printed
ENOUGH_VAE = 400  # steps of stage one; its shortcut starts from the principal components, so it needs fewer
FEWEST_VAE = 150

# Transformers from small to large: width, blocks, heads.
DIT_SIZES = ((128, 6, 4), (192, 6, 4), (256, 8, 4), (384, 12, 6), (512, 16, 8), (768, 24, 12))
# (number of images, the largest width for fewer images than that): larger networks learn small sets by heart.
LARGEST_BY_IMAGES = ((2_000, 256), (20_000, 384), (math.inf, 768))
MOST_TOKENS = {"cpu": 64, "gpu": 256}  # of a Transformer, if a larger patch can keep within it
MOST_POSITIONS = {"cpu": 256, "gpu": 1024}  # positions of a latent, height times width
LATENT_CHANNELS = {4: 8, 8: 16, 16: 32, 32: 64}  # for colour images, by the factor
BATCHES = (64, 32, 16)


@dataclass(frozen=True)
class Budget:
    """What a run may cost: the operations per second that its machine reaches in training, and the user's limits."""

    speed: float
    kind: str  # cpu or gpu
    seconds: float | None = None
    steps: int | None = None
    images: int = 0  # number of training images

    @classmethod
    def of(cls, config: Mapping[str, Any], images: int) -> "Budget":
        """The budget of a run with that config on that many training images."""
        options = config["trainer"]
        accelerator = options.get("accelerator") or "auto"
        device = available(accelerator)
        devices = options.get("devices")
        count = devices if isinstance(devices, int) and devices > 0 else 1
        speed = _speed_of(device, str(precision_of(options.get("precision"), accelerator))) * count
        kind = "cpu" if device.type == "cpu" else "gpu"
        return cls(speed, kind, seconds=limit_of(config), steps=steps_of(config), images=images)

    def steps_in_time(self, flops: float) -> int | None:
        """How many steps of `flops` operations fit into the time limit; None without a time limit."""
        return None if self.seconds is None else int(self.seconds * PREPARATION * self.speed / max(flops, 1))

    def affords(self, flops: float, steps: int) -> bool:
        """Whether `steps` steps of `flops` operations each fit into the time limit."""
        fitting = self.steps_in_time(flops)
        return fitting is None or fitting >= steps


def _speed_of(device: torch.device, precision: str) -> float:
    if device.type == "cpu":
        return CPU_CORE * torch.get_num_threads()
    peak = peak_of(device, precision)
    return OTHER_GPU if peak is None else SHARE_OF_PEAK * peak


def choose_vae(channels: int, size: tuple[int, int], budget: Budget) -> dict[str, Any]:
    """The spec of the largest autoencoder that makes enough steps within the time limit; of the smallest if none does.

    `channels` and `size` (height, width) are those of the images.
    """
    factor = factor_of(size, MOST_POSITIONS[budget.kind])
    latent_channels = LATENT_CHANNELS[factor] if channels > 2 else LATENT_CHANNELS[factor] // 2
    for stem, widths in _vae_sizes(factor, budget.kind):
        spec = {
            "class": "AutoencoderKL",
            "latent_channels": latent_channels,
            "channels": widths,
            "stem": stem,
            "shortcut": True,
        }
        if budget.affords(BATCHES[-1] * vae_flops(spec, channels, size), ENOUGH_VAE):
            break
    return spec


def _vae_sizes(factor: int, kind: str) -> Iterator[tuple[int, list[int]]]:
    """Stems and widths for a factor, from large to small. A stem makes a step cheap, so it is large on a CPU."""
    if kind == "gpu":
        yield factor // 4, [128, 256, 256]
    yield factor // 2, [64, 128]
    yield factor, [128]
    yield factor, [64]


def factor_of(size: tuple[int, int], most: int) -> int:
    """The smallest factor, from 4 on, that divides both sides of `size` and leaves at most `most` latent positions.

    If none does, the largest that divides both sides; if none divides them, 4, which is refused later with a message
    about the size.
    """
    dividing = [factor for factor in LATENT_CHANNELS if size[0] % factor == 0 and size[1] % factor == 0]
    for factor in dividing:
        if size[0] * size[1] <= most * factor**2:
            return factor
    return dividing[-1] if dividing else 4


def choose_network(latent_size: tuple[int, int], inputs: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """The spec of the widest Transformer that makes enough steps within the time limit, on patches as small as the
    limit allows; if none does, that of the narrowest on the largest patches.

    `inputs` are the arguments with which the network is built in addition to its spec.
    """
    patches = _patches_of(latent_size, MOST_TOKENS[budget.kind])
    for channels, depth, heads in _dit_sizes(budget):
        for patch in patches:
            spec = {"class": "DiT", "patch": patch, "channels": channels, "depth": depth, "heads": heads}
            batch = BATCHES[-1] if channels <= 192 else BATCHES[-2]  # small batches only where time is short
            if budget.affords(batch * network_flops(spec, latent_size, inputs), ENOUGH):
                return spec
    return spec


def _patches_of(latent_size: tuple[int, int], most: int) -> list[int]:
    """The smallest patch that leaves at most `most` tokens, and twice that where at least 4 x 4 tokens remain."""
    smallest = 16
    for patch in (1, 2, 4, 8):
        if math.ceil(latent_size[0] / patch) * math.ceil(latent_size[1] / patch) <= most:
            smallest = patch
            break
    return [smallest, 2 * smallest] if min(latent_size) >= 8 * smallest else [smallest]


def _dit_sizes(budget: Budget) -> list[tuple[int, int, int]]:
    """Transformers from large to small, none larger than the number of images justifies."""
    most = next(width for images, width in LARGEST_BY_IMAGES if budget.images < images)
    if budget.seconds is None:  # without a time limit, moderate sizes
        most = min(most, 192 if budget.kind == "cpu" else 384)
    return [size for size in reversed(DIT_SIZES) if size[0] <= most]


def choose_batch(flops: float, budget: Budget, enough: int) -> int:
    """The largest batch that leaves `enough` steps within the time limit, given the operations per image."""
    for batch in BATCHES:
        if budget.affords(batch * flops, enough):
            return batch
    return BATCHES[-1]
