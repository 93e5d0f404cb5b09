"""Stage two, starting from a base."""

from typing import Any

from torch import nn

from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond
from ldm.training.finetune.kind import Finetune
from ldm.training.ldm_task import DiffusionTask


class FinetuneTask(DiffusionTask):
    """Trains what `kind` makes trainable in `model`.

    Checkpoints hold that, its average and the saved model's weights. `base` is what an adapter records about its base.
    A resumed run reads frozen weights from the base again.
    """

    def __init__(self, model: LatentDiffusion, kind: Finetune, base: dict[str, str], **options: Any):
        self.kind, self.base = kind, base
        super().__init__(
            model.first_stage,
            model.denoiser,
            model.conditioner,
            preprocess=model.preprocess,
            whitening=(model.latent_mean.clone(), model.latent_std.clone()),
            sampling=dict(model.sampling),
            **options,
        )

    def condition(self, batch: dict[str, Any], network: Any, seed: int, training: bool) -> Cond:
        """The base's conditions with what the kind adds."""
        cond = super().condition(batch, network, seed, training)
        return self.kind.condition(cond, batch, seed, training)

    def saved(self) -> nn.Module:
        """What the kind saves: an adapter or the model."""
        return self.kind.saved(self.model(), self.base)

    def weight_names(self) -> dict[str, str]:
        """The names of the weights that the kind saves: see `Task.weight_names`."""
        return {name: self.name_of(own) for name, own in self.kind.weight_names(self.model()).items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen weights out of the checkpoint: the base has them."""
        super().on_save_checkpoint(checkpoint)
        drop = self.frozen_names() - set(checkpoint["ldm_weights"].values())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in drop}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the base's frozen weights into the checkpoint, which Lightning loads as a whole."""
        super().on_load_checkpoint(checkpoint)
        frozen = self.frozen_names()
        own = {name: tensor for name, tensor in self.state_dict().items() if name in frozen}
        checkpoint["state_dict"] = own | checkpoint["state_dict"]

    def frozen_names(self) -> set[str]:
        """The names that the base's own weights have in this task's state. These weights never change and aren't put
        into checkpoints.

        Averages share frozen weights, which therefore have a name in each of them.
        """
        frozen = frozen_parameters(self.trained)
        copies = ["trained", "average", *(f"power.{i}" for i in range(len(self.power)))]
        names = {f"{copy}.{name}" for copy in copies for name in frozen}
        return names | {f"first_stage.{name}" for name in frozen_parameters(self.first_stage)}


def frozen_parameters(module: nn.Module) -> list[str]:
    """The names of frozen parameters, each under all the names that it has."""
    named = module.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if not parameter.requires_grad]
