"""Textual inversion (Gal et al. 2022): the embeddings of one new word, for the built-in text encoder or frozen CLIPs.

The built-in encoder's table grows by a row. A frozen encoder isn't part of the model and stays as it is; the rows are
weights of its `FrozenText`. Of several encoders (Stable Diffusion XL) each has rows of its own.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.adapters.adapter import Adapter
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning import FrozenText, JoinedText, Text
from ldm.conditioning.text import tokenizer

AnyText = Text | FrozenText


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
    """`word` and its embeddings: `row` (vectors, dim), and `row_2` of the shape `second` for a second encoder."""

    def __init__(
        self,
        word: str,
        dim: int,
        base: Mapping[str, str] | None = None,
        vectors: int = 1,
        second: Sequence[int] | None = None,
    ):
        super().__init__(base)
        self.word = word
        self.row = nn.Parameter(torch.empty(vectors, dim), requires_grad=False)
        if second:
            self.row_2 = nn.Parameter(torch.empty(*second), requires_grad=False)

    @classmethod
    def of_tensor(
        cls, word: str, row: Tensor, base: Mapping[str, str] | None = None, row_2: Tensor | None = None
    ) -> "WordEmbedding":
        """The word with the given embeddings (N, D), `row_2` those for a second text encoder, which aren't copied."""
        sizes: dict[str, Any] = {"vectors": len(row)} if len(row) > 1 else {}
        sizes |= {} if row_2 is None else {"second": list(row_2.shape)}
        made = cls(word, row.shape[1], base, **sizes)
        made.row = nn.Parameter(row.detach(), requires_grad=False)
        if row_2 is not None:
            made.row_2 = nn.Parameter(row_2.detach(), requires_grad=False)
        return made

    @property
    def rows(self) -> list[Tensor]:
        """The embeddings, (N, D) for each text encoder."""
        return [self.row, self.row_2] if hasattr(self, "row_2") else [self.row]

    def attach(self, model: Any, name: str, scale: float) -> None:
        """Adds the word to the vocabulary of `model`, which is otherwise the same. Raises UserError for a scale."""
        if scale != 1:
            raise UserError(f"'{self.word}' is a learned word, and a word has no scale: leave the scale out.")
        parts = text_parts(model)
        _check_widths(self, parts)
        for part, rows in zip(parts, self.rows, strict=True):
            if isinstance(part, FrozenText):  # all, before one is changed
                part.check_word(self.word, len(rows))
        for part, rows in zip(parts, self.rows, strict=True):
            if isinstance(part, FrozenText):
                part.add_word(self.word, rows.to(part._device_marker.device))
            else:
                _add_row(part, self.word, rows)


def text_parts(model: Any) -> list[AnyText]:
    """The text encoders of a model that can learn words: the built-in one, or all the frozen ones of a condition.

    Raises UserError if there are none.
    """
    for part in model.conditioner.parts.values():
        if isinstance(part, (Text, FrozenText)):
            return [part]
        if isinstance(part, JoinedText):
            return list(part.encoders)
    raise UserError("only the built-in text encoder or a frozen CLIP can learn a new word, and this model has neither.")


def _check_widths(adapter: WordEmbedding, parts: Sequence[AnyText]) -> None:
    own, wanted = [rows.shape[1] for rows in adapter.rows], [part.token_dim for part in parts]
    if own != wanted:
        numbers = [" and ".join(map(str, widths)) for widths in (own, wanted)]
        raise UserError(
            f"the embedding of '{adapter.word}' has {numbers[0]} numbers, those of this model {numbers[1]}: load a "
            "word that was trained on this model, or on one with the same text encoders."
        )
    if isinstance(parts[0], Text) and len(adapter.row) > 1:
        raise UserError(
            f"'{adapter.word}' has {len(adapter.row)} vectors, and the built-in text encoder knows words of one: load "
            "one with vectors=1."
        )


def _add_row(part: Text, word: str, rows: Tensor) -> None:
    """Adds a word with the embedding `rows` (1, D) to the built-in text encoder."""
    add_word(part, word)
    table: Any = part.encoder.token_embedding
    grown = torch.cat([table.weight, rows.to(table.weight)])  # (N + 1, D)
    part.encoder.token_embedding = nn.Embedding.from_pretrained(grown)


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


def start(model: Any, word: str, init: str | None, vectors: int = 1) -> None:
    """Adds `word` to the text encoders of `model`, with embeddings to train, `vectors` of them in each frozen encoder.

    One vector starts as the mean over the tokens of `init`, or over the whole table if `init` is None. Several start as
    the tokens of `init` in turn.
    """
    for part in text_parts(model):
        if isinstance(part, FrozenText):
            part.known = None  # its captions' states change with the word
            part.add_word(word, _first_rows(part, init, vectors)).requires_grad_(True)
            continue
        if vectors != 1:
            raise UserError(f"vectors={vectors}: the built-in text encoder knows words of one vector; leave it out.")
        built_in: Any = part
        table = built_in.encoder.token_embedding
        ids = tokenizer.encode(part.tokenizer, ["" if init is None else init], part.length)  # (1, L) each
        own = ids[0][0, : int(ids[1].sum()) - 1]  # without the end
        row = _rows_of(table.weight, own, init, 1)[0]
        built_in.encoder.token_embedding = ExtendedEmbedding(table, row)
        add_word(part, word)


def _first_rows(part: FrozenText, init: str | None, vectors: int) -> Tensor:
    """The embeddings (vectors, D) that a word starts with in a frozen encoder."""
    table = part.encoder.get_input_embeddings().weight.detach()
    ids = part.tokenizer(init or "", add_special_tokens=False)["input_ids"]
    return _rows_of(table, torch.tensor(ids, dtype=torch.int64), init, vectors).to(part._device_marker.device)


def _rows_of(table: Tensor, ids: Tensor, init: str | None, vectors: int) -> Tensor:
    """Embeddings (vectors, D), made from the `table` (N, D) and the tokens `ids` (L,) of `init`; see `start`."""
    if init is None:
        return table.mean(0).expand(vectors, -1)
    if not len(ids):
        raise UserError(f"init='{init}' has no words: give some, or leave it out.")
    own = table[ids.to(table.device)]  # (L, D)
    return own.mean(0, keepdim=True) if vectors == 1 else torch.stack(list(islice(cycle(own), vectors)))


def trained(model: Any, word: str, base: Mapping[str, str]) -> WordEmbedding:
    """The word of `model` as an adapter to save. It shares the tensors with the model."""
    row, *more = (_rows_in(part, word) for part in text_parts(model))
    return WordEmbedding.of_tensor(word, row, base, *more)


def embeddings(model: Any, word: str) -> list[Tensor]:
    """The embeddings (N, D) of a word of `model`, for each text encoder. Raises UserError for an unknown word."""
    parts = text_parts(model)
    known = set(parts[0].words) if isinstance(parts[0], FrozenText) else set(parts[0].tokenizer.get_vocab())
    if word not in known:
        words = list(parts[0].words) if isinstance(parts[0], FrozenText) else list(model.adapters)
        raise UserError(f"the model has no word '{word}'.{did_you_mean(word, words)}")
    return [_rows_in(part, word) for part in parts]


def _rows_in(part: AnyText, word: str) -> Tensor:
    """The embeddings (N, D) of a word that was added to a text encoder, also while they train."""
    if isinstance(part, FrozenText):
        return part.word_rows[list(part.words).index(word)]
    table: Any = part.encoder.token_embedding
    if isinstance(table, ExtendedEmbedding):
        return table.added
    row: int = part.tokenizer.token_to_id(word)
    return table.weight[row : row + 1]


def names_in_model(model: Any) -> dict[str, str]:
    """For the word's embeddings, as named in `trained`, their names in the model's state during training."""
    prefixes = {module: prefix for prefix, module in model.named_modules()}
    own = {
        part: f"word_rows.{len(part.words) - 1}" if isinstance(part, FrozenText) else "encoder.token_embedding.added"
        for part in text_parts(model)
    }
    return {name: f"{prefixes[part]}.{own[part]}" for name, part in zip(("row", "row_2"), own, strict=False)}
