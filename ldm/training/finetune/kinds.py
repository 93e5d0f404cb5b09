"""The kinds of fine-tuning that conf/finetune/ names."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from ldm.adapters import lora
from ldm.adapters import textual_inversion as words
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.interop.lora import kinds as adapter_kinds
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

    The change is alpha / rank * B A (Hu et al. 2021), or that of another `kind` (`ldm.interop.lora.kinds`); alpha is
    the rank unless given. `rank_pattern` and `alpha_pattern` give the layers that they match their own rank or alpha.
    With `text_encoder` the built-in text encoder is adapted too, in layers that are chosen in the same way. `dropout`
    acts on the inputs of a LoRA or DoRA.
    """

    suffix = "lora"

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        targets: str | Sequence[str] = "attention",
        text_encoder: bool = False,
        dropout: float = 0.0,
        kind: str = "lora",
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        trigger: str | None = None,
        caption_dropout: float | None = None,
    ):
        if rank < 1 or (alpha is not None and not alpha > 0) or not 0 <= dropout < 1:
            raise UserError(
                f"rank={rank}, alpha={alpha}, dropout={dropout}: give a rank of at least 1, an "
                "alpha above 0 and a dropout from 0 to below 1."
            )
        if kind not in adapter_kinds.KINDS:
            raise UserError(f"kind={kind} isn't a kind of LoRA.{did_you_mean(kind, adapter_kinds.KINDS)}")
        if dropout and kind in ("loha", "lokr"):
            raise UserError(f"dropout={dropout} is for a LoRA or DoRA, and a {kind} has none: leave it out.")
        _check_patterns(rank_pattern, alpha_pattern)
        self.rank, self.alpha, self.targets = rank, alpha, targets
        self.kind, self.rank_pattern, self.alpha_pattern = kind, rank_pattern, alpha_pattern
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
            kind=self.kind,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
        )

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The LoRA alone, with its trigger word."""
        return lora.trained(model, NEW, self.trigger, base)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """The names of the LoRA's matrices."""
        return lora.names_in_model(model, NEW)


def _check_patterns(ranks: Mapping[str, int] | None, alphas: Mapping[str, float] | None) -> None:
    if bad := {p: r for p, r in (ranks or {}).items() if type(r) is not int or r < 1}:
        raise UserError(f"rank_pattern={bad}: a rank is a whole number, at least 1.")
    if bad_alphas := {p: a for p, a in (alphas or {}).items() if type(a) not in (int, float) or not 0 < a < math.inf}:
        raise UserError(f"alpha_pattern={bad_alphas}: an alpha is a number above 0.")


@register
class TextualInversion(Finetune):
    """The embedding of one new `word` (Gal et al. 2022), starting from the word `init`.

    It is a word of the built-in text encoder, or of a frozen CLIP (of both for Stable Diffusion XL), where it may have
    several `vectors`.
    """

    suffix = "word"
    changes_text = True

    def __init__(self, word: str, init: str | None = None, caption_dropout: float | None = 0.0, vectors: int = 1):
        if vectors < 1:
            raise UserError(f"vectors={vectors}: a word has one vector at least.")
        self.word, self.init, self.caption_dropout, self.vectors = word, init, caption_dropout, vectors

    def tables(self, tables: Tables) -> Tables:
        """Captions with the new word."""
        return with_word(tables, self.word)

    def prepare(self, model: LatentDiffusion) -> None:
        """Adds the word to the vocabulary, with embeddings made of those of `init`. They alone train."""
        drop_captions(model, self.caption_dropout)
        words.start(model, self.word, self.init, self.vectors)

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The word and its embedding alone."""
        return words.trained(model, self.word, base)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """The name of the embedding."""
        return words.names_in_model(model)
