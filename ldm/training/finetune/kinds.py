"""The kinds of fine-tuning that conf/finetune/ names."""

from collections.abc import Sequence

from torch import nn

from ldm.adapters import lora
from ldm.adapters import textual_inversion as words
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.training.finetune.controlnet import ControlFinetune
from ldm.training.finetune.distill import DistillFinetune
from ldm.training.finetune.kind import Finetune, Tables, drop_captions, with_word

__all__ = ["ControlFinetune", "DistillFinetune", "FullFinetune", "LoRAFinetune", "TextualInversion"]
NEW = "new"  # name of the LoRA that is trained


@register
class FullFinetune(Finetune):
    """Trains every weight of the denoiser and the conditions; the result is a whole model."""

    suffix = "full"

    def __init__(self, trigger: str | None = None, caption_dropout: float | None = None):
        self.trigger, self.caption_dropout = trigger, caption_dropout

    def tables(self, tables: Tables) -> Tables:
        """Captions with the trigger word, if there is one."""
        return with_word(tables, self.trigger)

    def prepare(self, model: LatentDiffusion) -> None:
        """Trains all weights of the denoiser and the conditioner."""
        drop_captions(model, self.caption_dropout)
        for module in (model.denoiser, model.conditioner):
            module.train().requires_grad_(True)

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The whole model."""
        return model


@register
class LoRAFinetune(Finetune):
    """A low-rank change of the layers that `targets` names (`ldm.adapters.lora.chosen`); the base stays frozen.

    The change is alpha / rank * B A (Hu et al. 2021); alpha is the rank unless given. With `text_encoder` the built-in
    text encoder is adapted too, in layers that are chosen in the same way. `dropout` is that of the LoRA's inputs.
    """

    suffix = "lora"

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        targets: str | Sequence[str] = "attention",
        text_encoder: bool = False,
        dropout: float = 0.0,
        trigger: str | None = None,
        caption_dropout: float | None = None,
    ):
        if rank < 1 or (alpha is not None and not alpha > 0) or not 0 <= dropout < 1:
            raise UserError(f"rank={rank}, alpha={alpha}, dropout={dropout}: at least 1, above 0, and a share below 1.")
        self.rank, self.alpha, self.targets = rank, alpha, targets
        self.text_encoder, self.dropout = text_encoder, dropout
        self.trigger, self.caption_dropout = trigger, caption_dropout

    def tables(self, tables: Tables) -> Tables:
        """Captions with the trigger word, if there is one."""
        return with_word(tables, self.trigger)

    def prepare(self, model: LatentDiffusion) -> None:
        """Adds a LoRA to the layers that `targets` names. It alone trains."""
        drop_captions(model, self.caption_dropout)
        lora.start(
            model,
            NEW,
            rank=self.rank,
            alpha=self.alpha,
            wanted=self.targets,
            text_encoder=self.text_encoder,
            dropout=self.dropout,
        )

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The LoRA alone, with its trigger word."""
        return lora.trained(model, NEW, self.trigger, base)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """Those of the LoRA's matrices."""
        return lora.names_in_model(model, NEW)


@register
class TextualInversion(Finetune):
    """The embedding of one new `word` of the built-in text encoder (Gal et al. 2022), starting from the word `init`."""

    suffix = "word"

    def __init__(self, word: str, init: str | None = None, caption_dropout: float | None = 0.0):
        self.word, self.init, self.caption_dropout = word, init, caption_dropout

    def tables(self, tables: Tables) -> Tables:
        """Captions with the new word."""
        return with_word(tables, self.word)

    def prepare(self, model: LatentDiffusion) -> None:
        """Adds the word to the vocabulary, with the embedding of `init`. It alone trains."""
        drop_captions(model, self.caption_dropout)
        words.start(model, self.word, self.init)

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The word and its embedding alone."""
        return words.trained(model, self.word, base)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """That of the embedding."""
        return words.names_in_model(model)
