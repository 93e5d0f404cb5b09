"""Consistency distillation as a task, with another loss in sigma-space."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.common.randomness import low_discrepancy, normal, uniform
from ldm.diffusion import Denoiser
from ldm.diffusion.consistency import baked, consistency_loss, segment_levels
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond
from ldm.training.averages import ema
from ldm.training.finetune.task import FinetuneTask, frozen_parameters
from ldm.training.trainer.means import Split, by_quarter


@dataclass
class Recipe:
    """What a student learns from, and how: see `DistillFinetune`. `scale` is the range of guidance scales."""

    teacher: Denoiser
    scale: tuple[float, float]
    interval: tuple[float, float] | None
    rescale: float
    shift: float
    levels: int
    segments: int
    skip: int
    solver: str
    target_decay: float
    huber_c: float


class DistillTask(FinetuneTask):
    """Trains the student of `kind.recipe` to follow a frozen teacher.

    Checkpoints hold `target`, the average that gives the targets, in addition to the average that is sampled. They
    don't hold the teacher, which comes from the base.
    """

    grid: Tensor
    ends: Tensor

    def __init__(self, model: LatentDiffusion, kind: Any, base: dict[str, str], **options: Any):
        super().__init__(model, kind, base, **options)
        self.recipe: Recipe = kind.recipe
        self.about = {"distilled": dict(model.distilled)}
        self.teacher = self.recipe.teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.target = ema.clone(self.trained["denoiser"]) if self.recipe.target_decay else None
        grid, ends = segment_levels(
            model.denoiser.parameterization,
            self.recipe.levels,
            self.recipe.segments,
            shift=self.recipe.shift,
            spacing=model.sampling["spacing"],
        )
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("ends", ends, persistent=False)

    def losses(self, batch: dict[str, Any], network: Any) -> tuple[Tensor, dict[str, Tensor | Split]]:
        """The consistency loss: the student at sigma against the target network at the lower noise level to which a
        step of the teacher leads. The target network is the student's average, or the student itself."""
        training, position = network is self.trained, batch["position"]
        seed = self.seed if training else self.seed + 1
        cond, null = self.conditions(batch, network, seed, training)
        x0, u = self.latents(batch, seed), low_discrepancy(seed, "sigma", position)
        sigma, s, end = self.stretch(u)
        x = x0 + sigma.view(-1, 1, 1, 1) * normal(seed, "noise", position, tuple(x0.shape[1:]))
        scale = self.scale(seed, position)
        cond_with_scale = replace(cond, guidance=scale)
        student = network["denoiser"]
        average = student if self.target is None else self.target
        each = consistency_loss(
            lambda x, sigma: student(x, sigma, cond_with_scale),
            lambda x, sigma: average(x, sigma, cond_with_scale),
            self.guided(cond, null, scale),
            x,
            sigma=sigma,
            s=s,
            end=end,
            solver=self.recipe.solver,
            huber_c=self.recipe.huber_c,
        )
        loss = each.mean()
        return loss, {"loss": loss, "loss_q": by_quarter(each, 1 - u)}

    def conditions(self, batch: dict[str, Any], network: Any, seed: int, training: bool) -> tuple[Cond, Cond]:
        """The batch's conditions, some of them dropped in training; and the same with null values for those that
        guidance acts on."""
        conditioner = network["conditioner"]
        batch = conditioner.prepare(batch, self.encode, seed)
        coins = batch["drop"] if "drop" in batch else conditioner.coins(seed, batch["position"])
        drop = coins if training else None
        cond = conditioner(batch, drop)
        if self.recipe.scale == (1.0, 1.0):
            return cond, cond
        return cond, conditioner.unguided(batch, drop)

    def stretch(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three noise levels (B,) of the grid for each quantile of `u` (B,), where 0 is the noisiest.

        They are: sigma; s, `skip` levels below sigma or at the segment's end if that is higher; and the segment's end.
        """
        i = (u * len(self.ends)).long()  # u < 1
        end = self.ends[i]
        return self.grid[i], self.grid[torch.minimum(i + self.recipe.skip, end)], self.grid[end]

    def scale(self, seed: int, position: Tensor) -> Tensor:
        """The guidance scale of each sample, (B,)."""
        least, most = self.recipe.scale
        return least + (most - least) * uniform(seed, "guidance", position)

    def guided(self, cond: Cond, null: Cond, scale: Tensor) -> Any:
        """The teacher as a function of (x, sigma), with guidance of `scale` (B,)."""
        if cond is null:
            return lambda x, sigma: self.teacher(x, sigma, cond)
        return baked(self.teacher, cond, null, scale, interval=self.recipe.interval, rescale=self.recipe.rescale)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Updates the target as well: another average of the student, at most once per optimizer step."""
        before = self._steps_averaged
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.target is not None and self._steps_averaged > before:
            decay = ema.ramp(self.global_step, self.recipe.target_decay)
            ema.update(self.target, self.trained["denoiser"], decay)

    def frozen_names(self) -> set[str]:
        """The names that are frozen in every fine-tuning, those of the teacher, and those that the target shares with
        the student.
        """
        names = super().frozen_names() | {f"teacher.{name}" for name in frozen_parameters(self.teacher)}
        if self.target is not None:
            names |= {f"target.{name}" for name in frozen_parameters(self.trained["denoiser"])}
        return names
