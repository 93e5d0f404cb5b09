"""Stage two, going on from a base."""

from typing import Any

from torch import Tensor, nn

from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond
from ldm.training.finetune.kind import Finetune
from ldm.training.ldm_task import DiffusionTask


class FinetuneTask(DiffusionTask):
    """Trains of `model` what `kind` makes trainable. Checkpoints hold that, its average and what the model folder does.

    `base` is what an adapter records of the base. What is frozen comes from the base again when a run is resumed.
    """

    def __init__(self, model: LatentDiffusion, kind: Finetune, base: dict[str, str], **options: Any):
        self.kind, self.base = kind, base
        whitening = (model.latent_mean.clone(), model.latent_std.clone())
        parts = (model.first_stage, model.denoiser, model.conditioner, model.preprocess, whitening)
        super().__init__(*parts, dict(model.sampling), **options)

    def condition(self, batch: dict[str, Any], network: Any, seed: int, training: bool) -> Cond:
        cond = super().condition(batch, network, seed, training)
        return self.kind.condition(cond, batch, seed, training)

    def saved(self) -> nn.Module:
        return self.kind.saved(self.model(), self.base)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        drop = self._frozen().keys() - checkpoint["ldm_weights"].values()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in drop}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        here = self.state_dict()
        checkpoint["state_dict"] = {k: here[k] for k in self._frozen()} | checkpoint["state_dict"]

    def unsaved(self) -> list[nn.Parameter]:
        """Parameters that are the base's own, and so are left out of checkpoints."""
        held = (*self.trained.parameters(), *self.first_stage.parameters())
        return [p for p in held if not p.requires_grad]

    def _frozen(self) -> dict[str, Tensor]:
        """What of the task's state is the base's and never changes."""
        frozen = {p.data_ptr() for p in self.unsaved()}
        return {name: tensor for name, tensor in self.state_dict().items() if tensor.data_ptr() in frozen}
