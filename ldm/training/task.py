"""What both stages share: optimizer, learning rate, averages of the weights, and the position in training's order."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ldm import artifact
from ldm.training.averages import ema, power_ema
from ldm.training.loss_mask import LossMask, pooled
from ldm.training.optimization import gradients, optimizers
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.trainer import sharded
from ldm.training.trainer.means import Means, Split


class Task(pl.LightningModule):
    """Trains `trained`, keeps its average in `average`, and assembles the model that users load.

    Subclasses give `losses(batch, network)`, `assemble(trained)` and `weight_names()`.

    All logged figures are means over samples. In training they are means over all batches of an optimizer step, and
    `shown` holds the last ones; a `Split` collects all steps since it was last logged, because a small batch would
    leave bands empty. In validation they are means over `validated` images. `measured` are figures of generated images
    there.

    `position` counts the samples seen on all ranks together. All random numbers come from (seed, position); for
    dropout, which uses torch's generator, that is seeded at each step. `depends_on` has the hashes of what the run
    depends on and a checkpoint doesn't hold, such as the data.
    """

    trained: Any  # networks: by torch's own types any attribute of a module may be a tensor
    average: Any

    def __init__(
        self,
        trained: nn.Module,
        *,
        learning_rate: LearningRate,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        power_lengths: Sequence[float] = (),
        seed: int = 0,
        log_every_n_steps: int = 20,
        depends_on: dict[str, str] | None = None,
        loss_mask: LossMask | None = None,
    ):
        super().__init__()
        self.trained = trained.to(memory_format=torch.channels_last)
        self.average = ema.clone(self.trained)
        self.power_lengths = tuple(length for length in power_lengths if power_ema.gamma_of(length))
        self.power = nn.ModuleList(ema.clone(self.trained) for _ in self.power_lengths)
        self.optimizer_name = optimizers.check_name(optimizer)
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.ema_decay, self.seed, self.every = ema_decay, seed, log_every_n_steps
        self.depends_on, self.loss_mask = depends_on or {}, loss_mask
        self._steps_averaged = 0
        self.shown: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.validated = 0
        self._training, self._validation = Means(), Means()
        self._norms: gradients.Norms | None = None

    def configure_model(self) -> None:
        """With trainer.strategy=fsdp, which makes a mesh of the processes, spreads what trains and its averages."""
        if self._device_mesh is not None and not sharded.is_sharded(self.trained):
            for network in (self.trained, self.average, *self.power):
                sharded.shard(network, self._device_mesh["data_parallel"])

    def losses(self, batch: dict[str, Any], network: Any) -> tuple[Tensor, Mapping[str, Tensor | Split]]:
        """The loss to minimise, and what to log."""
        raise NotImplementedError

    def places(self, batch: dict[str, Any], size: Sequence[int] | None = None) -> Tensor | None:
        """The weight of each place in the loss, (B, 1, h, w), for pixels or latents of `size` (h, w); None without a
        mask of the loss."""
        if self.loss_mask is None:
            return None
        places = self.loss_mask.places(batch)
        return places if size is None else pooled(places, tuple(size))

    def assemble(self, trained: Any) -> nn.Module:
        """The model as users load it, around the given weights, without copying them."""
        raise NotImplementedError

    def model(self) -> Any:
        """The model with the average weights, ready to sample or to be saved."""
        return self.assemble(self.average)

    def saved(self) -> nn.Module:
        """What the run's model folder holds: the model, or the adapter that a fine-tuning has trained."""
        return self.model()

    def weight_names(self) -> dict[str, str]:
        """For each weight of the saved model, by name, its name in this task's state."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seeds torch for dropout by the batch's position, so that a resumed run gets the same random numbers."""
        # Lightning's own count of steps, by which it logs, is one off after some resumes
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        torch.manual_seed(hash((self.seed, batch["start"], self.global_rank)) % 2**63)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch; its figures are collected until the next log."""
        loss, figures = self.losses(batch, self.trained)
        self._training.add_splits(figures)
        if self.logs_now:
            self._training.add(figures, len(batch["position"]))
        return loss

    @property
    def logs_now(self) -> bool:
        """Whether Lightning writes figures at this step. Figures that Lightning holds for longer would be lost on
        resuming."""
        return (self.global_step + 1) % self.every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the learning rate of this step, and logs every `every` steps."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        if self.logs_now:
            self.shown, _ = self._training.taken()
            self.log_dict({f"train/{name}": value for name, value in self.shown.items()})
            self.log("train/lr", self.learning_rate(self.global_step))

    def norms(self, optimizer: torch.optim.Optimizer) -> gradients.Norms:
        """The norms of the gradients before they are clipped, computed once a step."""
        if self._norms is None:
            gradients.unscale(optimizer, getattr(self.trainer.precision_plugin, "scaler", None))
            self._norms = gradients.norms_of(self.clipped_separately(optimizer))
        return self._norms

    def clipped_separately(self, optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
        """Sets of parameters, each clipped by the norm of its own gradients."""
        return [gradients.parameters_of(optimizer)]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips in every precision; Lightning refuses to in mixed precision with a fused optimizer."""
        norms, self._norms = self.norms(optimizer), None
        if self.logs_now:
            self.shown["grad_norm"] = norms.total.item()
            self.log("train/grad_norm", self.shown["grad_norm"])
        if gradient_clip_val:
            clip = gradients.clip_by_value if gradient_clip_algorithm == "value" else gradients.clip_by_norm
            clip(norms, gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Counts the batch's samples, and updates the averages once per optimizer step."""
        self.trainer.datamodule.position += self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if self.global_step > self._steps_averaged:  # once an optimizer step, not once a batch
            self._steps_averaged = self.global_step
            ema.update(self.average, self.trained, ema.ramp(self.global_step, self.ema_decay))
            power_ema.update(self.power, self.power_lengths, self.trained, self.global_step)  # type: ignore[arg-type]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collects the figures of the average model."""
        _, figures = self.losses(batch, self.average)
        if batch["counted"]:
            self._validation.add_splits(figures)
            self._validation.add(figures, batch["counted"])

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the validation samples."""
        means, self.validated = self._validation.taken()
        self.log_dict({f"val/{name}": value for name, value in means.items()})

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of parameters."""
        return optimizers.groups_of(self.optimizer_name, self.trained)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over `groups`, at the learning rate of step 0."""
        return optimizers.build_optimizer(
            self.optimizer_name,
            self.groups(),
            lr=self.learning_rate(0),
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `ldm.load` needs to read the model out of a checkpoint: its spec, and the name of each weight."""
        checkpoint["ldm_model"] = artifact.describe(self.saved())
        checkpoint["ldm_weights"] = self.weight_names()
        checkpoint["ldm_total_steps"] = self.learning_rate.total_steps
        checkpoint["ldm_schedule_since"] = self.learning_rate.since
        checkpoint["ldm_steps_averaged"] = self._steps_averaged
        checkpoint["ldm_depends_on"] = self.depends_on
        checkpoint["ldm_figures"] = self._training.pending()
        # This is saved at the start of a batch that a resumed run repeats, so the batch isn't counted as begun.
        for count in ("total", "current"):
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][count]
            progress |= dict.fromkeys(("ready", "started", "processed"), progress["completed"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the schedule's end, the averages' step and the figures collected since the last log."""
        rate = self.learning_rate
        if (
            rate.total_steps is None and rate.since is None
        ):  # with a time limit: the first part of the run has measured the steps
            rate.total_steps, rate.since = checkpoint["ldm_total_steps"], checkpoint["ldm_schedule_since"]
        self._steps_averaged = checkpoint["ldm_steps_averaged"]
        if self.global_rank == 0:  # the figures cover all processes
            self._training.restore(checkpoint.get("ldm_figures", {}))
