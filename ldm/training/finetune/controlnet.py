"""Fine-tuning by a ControlNet: the base stays as it is, and learns to be told by a picture what goes where."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.adapters.controlnet import Control, ControlImages
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.data.datamodule import Read
from ldm.data.storage.table import Table, values
from ldm.images import Preprocess
from ldm.images.hints import Hint, hint_for
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond, Controlled, DiT, UNet, controlnet_for
from ldm.training.finetune.kind import Finetune, Tables

NAME = "control"  # of the one ControlNet that trains


@register
class ControlFinetune(Finetune):
    """Trains a ControlNet on control images of the kind `control`, made with `options`, or in the column of that name.

    `prompt_dropout` is the share of samples whose prompt (or label) is left out, each one where the base has learnt to
    do without: half of them in the paper, so that the control image alone says enough.
    """

    hint: Hint

    def __init__(self, control: str, options: Mapping[str, Any] | None = None, prompt_dropout: float | None = 0.5):
        if prompt_dropout is not None and not 0 <= prompt_dropout <= 1:
            raise UserError(f"prompt_dropout={prompt_dropout} is a share: 0 to 1.")
        self.control, self.options, self.prompt_dropout = control, dict(options or {}), prompt_dropout

    @property
    def suffix(self) -> str:  # type: ignore[override]
        return self.control

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.hint.column,)

    def check(self, model: LatentDiffusion, tables: Tables) -> None:
        self.hint = hint_for(self.control, tables[0], self.options)
        if not isinstance(model.denoiser.network, (UNet, DiT)):
            name = type(model.denoiser.network).__name__
            raise UserError(f"a ControlNet copies a part of a UNet or a DiT; the base has a {name}.")
        super().check(model, tables)

    def prepare(self, model: LatentDiffusion) -> None:
        base: Any = model.denoiser.network
        net = controlnet_for(base, self.hint.channels, model.first_stage.factor * base.patch).train()
        model.denoiser.network = Controlled(base)
        model.denoiser.network.add(NAME, net)
        for part in model.conditioner.parts.values():
            if part.drop_prob > 0 and self.prompt_dropout is not None:
                part.drop_prob = self.prompt_dropout

    def condition(self, cond: Cond, batch: Mapping[str, Any], seed: int, training: bool) -> Cond:
        column = batch["hint"] if "hint" in batch else batch[self.hint.column]
        return replace(cond, control={**cond.control, NAME: self.hint(column)})

    def reader(self, read: Read, preprocess: Preprocess) -> Read:
        on_host = type(self.hint).on_host is not Hint.on_host
        return HintReader(read, self.hint, preprocess) if on_host else read

    def pictures(self, val: Table, n: int, seed: int) -> Callable[[LatentDiffusion], Tensor]:
        """Control images of validation scenes, each with what is drawn after it beside."""

        def draw(model: LatentDiffusion) -> Tensor:
            rows = np.arange(min(n, len(val)))
            needs = model.conditioner.needs
            batch = val.batch(rows, {*needs, self.hint.column})
            given = {k: batch[k].tolist() if isinstance(batch[k], Tensor) else batch[k] for k in needs}
            hints = self.hint(batch[self.hint.column]).to(model.latent_mean.device)
            control = ControlImages({NAME: hints}, {NAME: 1.0}, {NAME: (0.0, 1.0)})
            steps = min(model.sampling["steps"], 50)
            drawn = model.draw(given, 1 if given else len(rows), seed=seed, steps=steps, steering=control).cpu()
            return beside(self.hint.show(hints).cpu(), drawn)

        return draw

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        network: Any = model.denoiser.network
        return Control(network.controlnets[0], self.hint, base)


class HintReader:
    """Adds `hint`, what the control image is made of, by a kind that makes it on the host."""

    def __init__(self, read: Read, hint: Hint, preprocess: Preprocess):
        self.read, self.hint, self.preprocess = read, hint, preprocess

    def __call__(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        column = self.hint.column
        made = self.hint.on_host(values({column: batch[column]}, self.preprocess)[column])
        return self.read(batch, training) | {"hint": made}


def beside(a: Tensor, b: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of two kinds, 1 or 3 channels, in turns: (2N, C, H, W)."""
    channels = max(a.shape[1], b.shape[1])
    a, b = (t[:, :3].expand(-1, channels, -1, -1) if t.shape[1] == 1 else t[:, :3] for t in (a, b))
    return torch.stack([a, b], 1).flatten(0, 1)
