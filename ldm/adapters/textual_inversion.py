"""Textual inversion (Gal et al. 2022): the embedding of one new word for the built-in text encoder."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.adapters.adapter import Adapter
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning import Text
from ldm.conditioning.text import tokenizer


class ExtendedEmbedding(nn.Module):
    """An embedding table with one more row, `added` (1, D), the only one that is trained."""

    def __init__(self, table: nn.Embedding, row: Tensor):
        super().__init__()
        self.weight = table.weight
        self.added = nn.Parameter(row[None].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` (B, L) int64 -> (B, L, D)."""
        return F.embedding(ids, torch.cat([self.weight, self.added]))


@register
class WordEmbedding(Adapter):
    """`word` and its embedding, `row` (1, dim)."""

    def __init__(self, word: str, dim: int, base: Mapping[str, str] | None = None):
        super().__init__(base)
        self.word = word
        self.row = nn.Parameter(torch.empty(1, dim), requires_grad=False)

    @classmethod
    def of_tensor(cls, word: str, row: Tensor, base: Mapping[str, str] | None = None) -> "WordEmbedding":
        """The word with the given embedding (1, dim), which isn't copied."""
        made = cls(word, row.shape[1], base)
        made.row = nn.Parameter(row.detach(), requires_grad=False)
        return made

    def attach(self, model: Any, name: str, scale: float) -> None:
        """Adds the word to the vocabulary of `model`, which is otherwise the same. Raises UserError for a scale."""
        if scale != 1:
            raise UserError(f"'{self.word}' is a learned word, and a word has no scale: leave the scale out.")
        part = text_part(model)
        old = part.encoder.token_embedding
        if old.weight.shape[1] != self.row.shape[1]:
            raise UserError(
                f"the embedding of '{self.word}' has {self.row.shape[1]} numbers, those of this model "
                f"{old.weight.shape[1]}: load a word that was trained on this model."
            )
        add_word(part, self.word)
        rows = torch.cat([old.weight, self.row.to(old.weight)])  # (N + 1, D)
        part.encoder.token_embedding = nn.Embedding.from_pretrained(rows)


def text_part(model: Any) -> Text:
    """The condition of a model with the built-in text encoder. Raises UserError if it has none."""
    for part in model.conditioner.parts.values():
        if isinstance(part, Text):
            return part
    raise UserError("only the built-in text encoder can learn a new word, and this model has no such encoder.")


def add_word(part: Text, word: str) -> None:
    """Makes `word` a token of its own, with the last id; the text around it is split as before."""
    from tokenizers import AddedToken

    if not word or word != word.strip() or any(c.isspace() for c in word):
        raise UserError(f"word='{word}' has to be one word, without spaces.")
    if part.tokenizer.token_to_id(word) is not None:
        raise UserError(f"word='{word}' is a token of the model already: use another word, such as <{word}>.")
    grown = part.tokenizer.from_str(part.tokenizer.to_str())  # a copy, since other models may share the tokenizer
    grown.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=False)])
    text = grown.to_str()
    part.tokenizer = tokenizer.load(text)
    spec: Any = part._spec
    object.__setattr__(part, "_spec", {**spec, "tokenizer_json": text})


def start(model: Any, word: str, init: str | None) -> None:
    """Adds `word` to the text encoder of `model`, with an embedding to train.

    It starts as the mean over the tokens of `init`, or over the whole table if `init` is None.
    """
    part: Any = text_part(model)
    table = part.encoder.token_embedding
    if init is None:
        row = table.weight.mean(0)
    else:
        ids, mask = tokenizer.encode(part.tokenizer, [init], part.length)  # (1, L)
        words = ids[0, : int(mask.sum()) - 1]  # without the end
        if not len(words):
            raise UserError(f"init='{init}' has no words: give some, or leave it out.")
        row = table.weight[words.to(table.weight.device)].mean(0)
    part.encoder.token_embedding = ExtendedEmbedding(table, row)
    add_word(part, word)


def trained(model: Any, word: str, base: Mapping[str, str]) -> WordEmbedding:
    """The word of `model` as an adapter to save. It shares the tensor with the model."""
    table: Any = text_part(model).encoder.token_embedding
    return WordEmbedding.of_tensor(word, table.added, base)


def names_in_model(model: Any) -> dict[str, str]:
    """For the word's embedding, as named in `trained`, its name in the model's state during training."""
    prefixes = {module: prefix for prefix, module in model.named_modules()}
    return {"row": f"{prefixes[text_part(model)]}.encoder.token_embedding.added"}
