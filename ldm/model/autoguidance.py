"""Autoguidance: a model guided away from a worse one of the same data (Karras et al. 2024, arXiv 2406.02507)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.common.errors import UserError
from ldm.conditioning import Conditions, conditions_of
from ldm.diffusion import away
from ldm.diffusion.samplers import DenoiseFn

DEFAULT = 1.5


def load_autoguide(model: Any, path: str | Path | Any) -> None:
    """Loads the worse model for autoguidance from `path`: a run, a checkpoint, whatever `ldm.load` reads, or a model.

    It is a smaller model, or an earlier checkpoint of the same run. Then generate with `autoguidance=1.5`, with or
    without conditions; classifier-free guidance is off unless `guidance` is given too. Raises UserError for a model of
    other latents.
    """
    guide: Any = path
    where = "the model"
    if isinstance(path, (str, Path)):
        guide, where = model._opener(path), str(path)
    check_guide(model, guide, where)
    model.guide = (guide.to(model.latent_mean.device),)


def check_guide(model: Any, guide: Any, where: str) -> None:
    """Raises UserError unless `guide` is a diffusion model on the latents of `model`."""
    if not hasattr(guide, "denoiser") or not hasattr(guide, "latent_mean"):
        raise UserError(f"autoguide={where} isn't a diffusion model: name a run of train_ldm.py or its checkpoint.")
    mine, other = (torch.stack([m.latent_mean.cpu(), m.latent_std.cpu()]) for m in (model, guide))
    if mine.shape != other.shape or not torch.allclose(mine, other, rtol=1e-4, atol=1e-5):
        raise UserError(
            f"autoguide={where} was trained on other latents: use a model with the same first stage and data."
        )


def conditions_of_guide(model: Any, given: Mapping[str, list], n: int, size: tuple[int, int]) -> Conditions | None:
    """The conditions for the worse model: those of `given` that it was trained with; None without a worse model."""
    if not model.guide:
        return None
    conditioner = model.guide[0].conditioner
    count = n * max(map(len, given.values()), default=1)
    known = {key: values for key, values in given.items() if key in conditioner.inputs}
    return conditions_of(conditioner, known, n if known else count, size=size)


def autoguided(
    model: Any,
    denoise: DenoiseFn,
    conditions: Conditions | None,
    *,
    scale: float | None,
    interval: tuple[float, float] | None,
    seeds: Sequence[int],
) -> DenoiseFn:
    """`denoise` guided away from the worse model with `scale`, for noise levels within `interval`."""
    if conditions is None:
        if scale not in (None, 1):
            raise UserError(
                "autoguidance needs a worse model: autoguide=RUN_OR_PATH, or load_autoguide(path) in Python."
            )
        return denoise
    guide = model.guide[0]
    cond = conditions.terms(1.0, guide.encode, list(seeds)).full.lowered(model.dtype)
    worse = guide.denoiser.around(model.coding.network(guide.denoiser.network, "guide"), model.dtype)
    return away(denoise, lambda x, sigma: worse(x, sigma, cond), scale or DEFAULT, interval)
