"""Autoguidance: a model led away from a worse one of the same data (Karras et al. 2024, arXiv 2406.02507)."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.common.errors import UserError
from ldm.conditioning import Asked, ask
from ldm.diffusion import away
from ldm.diffusion.samplers import DenoiseFn

DEFAULT = 1.5


class Autoguided:
    """A model that may hold a worse one: smaller, or an earlier checkpoint of its own run."""

    guide: tuple[Any, ...] = ()  # a tuple, so that the worse model is no part of this one's weights

    def load_autoguide(self: Any, path: str | Path | Any) -> None:
        """Takes the model at `path` (a run's folder, a checkpoint, what `ldm.load` reads; or a model) to lead away
        from. Draw with `autoguidance=1.5`, with or without conditions; classifier-free guidance is then off unless
        `guidance` is given too.

        Raises UserError if it isn't of the same latents.
        """
        guide: Any = path
        where = "the model"
        if isinstance(path, (str, Path)):  # what loads models stands above them
            guide, where = importlib.import_module("ldm.model.loading").load(path), str(path)
        self.check_autoguide(guide, where)
        self.guide = (guide.to(self.latent_mean.device),)

    def check_autoguide(self: Any, guide: Any, where: str) -> None:
        if not isinstance(guide, Autoguided):
            raise UserError(
                f"autoguide={where} is no diffusion model: name a run of train_ldm.py or a checkpoint of it."
            )
        pair: tuple[Any, Any] = (self, guide)
        mine, other = (torch.stack([m.latent_mean.cpu(), m.latent_std.cpu()]) for m in pair)
        if mine.shape != other.shape or not torch.allclose(mine, other, rtol=1e-4, atol=1e-5):
            raise UserError(
                f"autoguide={where} was trained on other latents: it has to share the first stage and the data."
            )

    def asked_of_guide(self, given: Mapping[str, list], n: int, size: tuple[int, int]) -> Asked | None:
        """The same conditions for the worse model, as far as it takes them; None where there is none."""
        if not self.guide:
            return None
        conditioner = self.guide[0].conditioner
        count = n * max(map(len, given.values()), default=1)
        known = {key: values for key, values in given.items() if key in conditioner.takes}
        return ask(conditioner, known, n if known else count, None, size)

    def autoguided(
        self: Any,
        denoise: DenoiseFn,
        asked: Asked | None,
        scale: float | None,
        interval: tuple[float, float] | None,
        seeds: Sequence[int],
    ) -> DenoiseFn:
        """`denoise` led away from the worse model by `scale`, within `interval`."""
        if asked is None:
            if scale not in (None, 1):
                raise UserError(
                    "autoguidance needs a worse model: autoguide=RUN_OR_PATH, or load_autoguide(path) in Python."
                )
            return denoise
        guide = self.guide[0]
        conds, _ = asked.weighted(1.0, guide.encode, list(seeds))
        cond = conds[-1].lowered(self.dtype)
        worse = guide.denoiser.around(self.coding.network(guide.denoiser.network, "guide"), self.dtype)
        return away(denoise, lambda x, sigma: worse(x, sigma, cond), scale or DEFAULT, interval)
