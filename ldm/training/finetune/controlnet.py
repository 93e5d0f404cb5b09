"""Fine-tuning by a ControlNet: the base stays frozen, and the ControlNet learns to follow a control image."""

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

NAME = "control"  # name of the ControlNet that is trained
CONTROLNET = "denoiser.network.controlnets.0"  # its place in the model


@register
class ControlFinetune(Finetune):
    """Trains a ControlNet on control images of the kind `control`, computed with `options`, or taken from the column of
    that name.

    `prompt_dropout` is the share of samples whose prompt (or label) is dropped, for each condition that the base was
    trained to do without. The paper drops half of them, so that the network learns to rely on the control image.
    """

    hint: Hint

    def __init__(self, control: str, options: Mapping[str, Any] | None = None, prompt_dropout: float | None = 0.5):
        if prompt_dropout is not None and not 0 <= prompt_dropout <= 1:
            raise UserError(f"prompt_dropout={prompt_dropout} is a share: 0 to 1.")
        self.control, self.options, self.prompt_dropout = control, dict(options or {}), prompt_dropout

    @property
    def suffix(self) -> str:  # type: ignore[override]
        """The kind of control image."""
        return self.control

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column that control images are made from."""
        return (self.hint.column,)

    def check(self, model: LatentDiffusion, tables: Tables) -> None:
        """Raises UserError for control images that the data don't give, and for a base that isn't a UNet or DiT."""
        self.hint = hint_for(self.control, tables[0], self.options)
        if not isinstance(model.denoiser.network, (UNet, DiT)):
            name = type(model.denoiser.network).__name__
            raise UserError(f"a ControlNet copies a part of a UNet or a DiT; the base has a {name}.")
        super().check(model, tables)

    def prepare(self, model: LatentDiffusion) -> None:
        """Adds a ControlNet that starts as a copy of the base's first part (Zhang et al. 2023). It alone trains."""
        base: Any = model.denoiser.network
        net = controlnet_for(base, self.hint.channels, model.first_stage.factor * base.patch).train()
        model.denoiser.network = Controlled(base)
        model.denoiser.network.add(NAME, net)
        for part in model.conditioner.parts.values():
            if part.drop_prob > 0 and self.prompt_dropout is not None:
                part.drop_prob = self.prompt_dropout

    def condition(self, cond: Cond, batch: Mapping[str, Any], seed: int, training: bool) -> Cond:
        """`cond` with the batch's control images (B, C, H, W)."""
        column = batch["hint"] if "hint" in batch else batch[self.hint.column]
        return replace(cond, control={**cond.control, NAME: self.hint(column)})

    def reader(self, read: Read, preprocess: Preprocess) -> Read:
        """Adds the control images to a batch on the host, where the CPU makes them."""
        on_host = type(self.hint).on_host is not Hint.on_host
        return HintReader(read, self.hint, preprocess) if on_host else read

    def sample_function(self, val: Table, n: int, seed: int) -> Callable[[LatentDiffusion], Tensor]:
        """A function of a model that gives control images of validation, each followed by an image generated with
        it."""

        def sample(model: LatentDiffusion) -> Tensor:
            """Control images of the first validation samples, each followed by an image generated with it."""
            rows = np.arange(min(n, len(val)))
            batch = val.batch(rows, {*model.conditioner.needs, self.hint.column})
            conditions = {}
            for key in model.conditioner.needs:
                column = batch[key]
                conditions[key] = column.tolist() if isinstance(column, Tensor) else column
            hints = self.hint(batch[self.hint.column]).to(model.latent_mean.device)
            control = ControlImages({NAME: hints}, {NAME: 1.0}, {NAME: (0.0, 1.0)})
            each, steps = 1 if conditions else len(rows), min(model.sampling["steps"], 50)
            images = model.generate_for(conditions, each, seed=seed, steps=steps, control=control).cpu()
            return alternating(self.hint.show(hints).cpu(), images)

        return sample

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The ControlNet alone, with its kind of control image."""
        network: Any = model.denoiser.network
        return Control(network.controlnets[0], self.hint, base)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """The names of the ControlNet's weights."""
        network: Any = model.denoiser.network
        return {f"network.{name}": f"{CONTROLNET}.{name}" for name in network.controlnets[0].state_dict()}


class HintReader:
    """Adds `hint`, from which the control image is made, for kinds that make it on the host."""

    def __init__(self, read: Read, hint: Hint, preprocess: Preprocess):
        self.read, self.hint, self.preprocess = read, hint, preprocess

    def __call__(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        column = self.hint.column
        made = self.hint.on_host(values({column: batch[column]}, self.preprocess)[column])
        return self.read(batch, training) | {"hint": made}


def alternating(a: Tensor, b: Tensor) -> Tensor:
    """Images of two kinds, (N, C, H, W) each with 1 or 3 channels, alternating: (2N, C, H, W)."""
    channels = max(a.shape[1], b.shape[1])
    pair = [images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images[:, :3] for images in (a, b)]
    return torch.stack(pair, 1).flatten(0, 1)
