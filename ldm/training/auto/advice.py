"""Advice on training with a data set: a size, what `auto` chooses, and how long that takes, estimated from a few
steps.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.conditioning import Conditioner
from ldm.data.storage.table import Table
from ldm.training import ldm_run
from ldm.training.auto.choose import Budget
from ldm.training.auto.measure import Seconds, network_seconds, vae_seconds
from ldm.training.auto.settle import settle_network, settle_vae
from ldm.training.runs.resume import limit_of, steps_of
from ldm.training.trainer.fit import device_for
from ldm.training.vae_run import check_images

SIDES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
LARGEST = {"cpu": 128, "gpu": 256}  # sides that a first model of one's own can be trained at in hours
_MULTIPLE = 16  # of both sides: factors of autoencoders up to 16 divide them
_SAME_ASPECT = 0.1  # images whose logarithms of the aspect differ by less from the median have its aspect
_MOST = 0.8  # of the images must have one aspect for a size that isn't square


@dataclass
class Plan:
    """What `auto` chooses for both stages: `lines` describe it in words, and `figures` hold it as plain data.
    `refusal` says why training would stop; `conditioner` has the conditions of stage two."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    conditioner: Conditioner | None = None

    def says(self, stage: str) -> Callable[[str], None]:
        """Returns a function that adds a line about a stage."""

        def say(line: str) -> None:
            self.lines.append(line if "=auto:" in line else f"{stage}: {line}")

        return say


def size_for(sizes: Sequence[tuple[int, int]], config: dict[str, Any]) -> int | list[int]:
    """A size for images of several sizes (height, width): a side, or [height, width] where most have one aspect.

    The shorter side is the largest of `SIDES` that nine tenths of the images have, and that the machine can train.
    """
    known = np.array(sizes, np.float64)  # (N, 2)
    short = np.quantile(known.min(1), 0.1)
    largest = min(short, LARGEST[Budget.of(config, len(known)).kind])
    side = max([s for s in SIDES if s <= largest], default=SIDES[0])
    aspects = np.log(known[:, 1] / known[:, 0])
    middle = float(np.median(aspects))
    is_square = abs(middle) < _SAME_ASPECT or np.mean(np.abs(aspects - middle) < _SAME_ASPECT) < _MOST
    long = _MULTIPLE * round(side * np.exp(abs(middle)) / _MULTIPLE)
    if is_square or long <= side:
        return side
    return [side, int(long)] if middle > 0 else [int(long), side]


def plan(config: dict[str, Any], source: Any, train: Table, images: int) -> Plan:
    """What training would choose for the table of a source, by a config with the groups of both stages.

    `images` is the number of training images, and config["steps"] the number of steps to time.
    """
    found, first, second = Plan(), copy.deepcopy(config), copy.deepcopy(config)
    try:
        channels, (height, width) = train.preprocess.channels, train.images.shape[2:]
        settle_vae(first, {}, channels=channels, size=(height, width), images=images, say=found.says("stage one"))
        vae = build(first["vae"], "vae", in_channels=channels)
        check_images(vae, train)
        conditioner = ldm_run.build_conditioner(config["conditioner"], source.default_condition, train, vae)
        settle_network(
            second,
            {},
            latent_size=(height // vae.factor, width // vae.factor),
            inputs=ldm_run.network_inputs(vae, conditioner),
            images=images,
            say=found.says("stage two"),
        )
    except UserError as error:
        found.refusal = str(error)
        return found
    found.conditioner = conditioner
    found.figures = {name: _chosen(one, name) for one, name in ((first, "vae"), (second, "network"))}
    if config["steps"]:  # measured, which is better than the arithmetic
        found.lines = [line for line in found.lines if "GFLOP/s" not in line]
        denoiser = ldm_run.build_denoiser(second, vae, conditioner)
        device = device_for(config)
        of_vae = vae_seconds(vae, train, first, device)
        of_network = network_seconds(denoiser, conditioner, train, second, vae=vae, device=device)
        _add_times(found, config, images, of_vae=of_vae, of_network=of_network)
    return found


def _chosen(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {**config[name], "batch_size": config["batch_size"], "lr": config["optimizer"]["lr"]}


def _add_times(found: Plan, config: dict[str, Any], images: int, *, of_vae: Seconds, of_network: Seconds) -> None:
    """Adds the expected minutes of each stage."""
    encoding = of_vae.forward * images / found.figures["vae"]["batch_size"] / 60
    for name, seconds in (("vae", of_vae.step), ("network", of_network.step)):
        batch, limit, steps = found.figures[name]["batch_size"], limit_of(config), steps_of(config)
        in_time = int(0.9 * limit / seconds) if limit else None
        count = min(n for n in (in_time, steps) if n) if in_time or steps else 0
        minutes = count * seconds / 60
        found.figures[name] |= {"seconds_per_step": seconds, "steps": count, "minutes": minutes}
        stage = "stage one" if name == "vae" else "stage two"
        found.lines.append(f"{stage}: {seconds:.2g} s a step of {batch} here, {count} steps in {_minutes(minutes)}")
    found.figures["encoding_minutes"] = encoding
    if encoding >= 1:
        found.lines.append(f"encoding the latents once, between the stages: {_minutes(encoding)}")


def _minutes(minutes: float) -> str:
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.1f} hours"
