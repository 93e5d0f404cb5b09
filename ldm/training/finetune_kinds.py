"""The kinds of fine-tuning that conf/finetune/ names."""

from torch import nn

from ldm.pipeline import LatentDiffusion
from ldm.registry import register
from ldm.training.control import ControlFinetune
from ldm.training.finetune import Finetune, Tables, drop_captions, with_word

__all__ = ["ControlFinetune", "FullFinetune"]


@register
class FullFinetune(Finetune):
    """Every weight of denoiser and conditions trains on; a whole model comes out."""

    suffix = "full"

    def __init__(self, trigger: str | None = None, caption_dropout: float | None = None):
        self.trigger, self.caption_dropout = trigger, caption_dropout

    def tables(self, tables: Tables) -> Tables:
        return with_word(tables, self.trigger)

    def prepare(self, model: LatentDiffusion) -> None:
        drop_captions(model, self.caption_dropout)
        for module in (model.denoiser, model.conditioner):
            module.train().requires_grad_(True)

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        return model
