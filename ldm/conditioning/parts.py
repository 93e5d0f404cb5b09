"""One condition each: from a column of the batch to its role in `Cond`, and what stands for its absence."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.annotations import replace_surrogates
from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.conditioning.reader import Tokens, without
from ldm.conditioning.text import tokenizer
from ldm.conditioning.text.truncation import Cut
from ldm.networks import Cond, TextTransformer

_log = logging.getLogger("ldm")
Encode = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [-1, 1] -> whitened latents (B, C', h, w)


class Part(nn.Module):
    """A condition. `column` is the batch key it reads; `token_dim`, `vector_dim` and `concat_channels` say what the
    network gets of it.

    `forward(values, drop)` encodes a batch, replacing the samples where `drop` (B,) is True by the null condition,
    which classifier-free guidance needs (Ho and Salimans 2022).

    A column that the data don't have is made by `prepare` out of `sources`, the keys that they do have; what a user
    passes goes by the names in `takes`. Where `guided` is False a single guidance scale leaves the condition alone: it
    is kept on both sides.
    """

    column: str
    token_dim: int | None = None
    vector_dim: int | None = None
    concat_channels: int = 0
    sources: tuple[str, ...] = ()
    guided: bool = True
    nothing: str = ""  # what stands for a caption that is dropped

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that are read off the training data; `options` are those that the user chose."""
        return {}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that are read off the first stage: its factor, its channels."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The batch keys that training data must give."""
        return self.sources or (self.column,)

    @property
    def takes(self) -> tuple[str, ...]:
        """What a user passes: its names."""
        return (self.column,)

    def prepare(self, batch: Mapping[str, Any], encode: Encode, seed: int) -> Any:
        """The column out of `sources`, or out of what a user gave. `encode` maps images to whitened latents.

        All randomness is of (seed, batch["position"]), which is the picture's own seed when sampling.
        """
        raise NotImplementedError

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What a user would pass to draw the samples of a batch out of the data."""
        return {key: batch[key] for key in self.takes}

    def reader(self) -> Callable[[list[str]], Any] | None:
        """What makes tensors of captions on the host, without any weights; None for columns that are tensors."""
        return None

    def move_to(self, device: torch.device) -> None:
        """Moves what isn't in the module's state: a frozen encoder, before the first step needs it."""

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        """Those of `captions` that are longer than it reads."""
        return []

    def null_values(self, n: int) -> Any:
        """`n` values of the column that mean "nothing said"."""
        raise NotImplementedError

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Any:
        """The same for images of `size` (height, width) in pixels, by default as trained."""
        return self.null_values(n)

    def parse(self, values: Any) -> Any:
        """What a user passes, as the batch has it. Raises UserError naming what is possible."""
        return values


def classes_line(labels: Mapping[str, int], most: int = 20) -> str:
    """'2 classes: 0 = cat, 1 = dog': the numbers of classes with their names; where they are the same, once."""
    same = all(name == str(i) for name, i in labels.items())
    some = [name if same else f"{i} = {name}" for name, i in labels.items()][:most]
    count = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
    return f"{count}: {', '.join(some)}{', ...' if len(labels) > most else ''}"


@register
class ClassLabel(Part):
    """A class as a vector for the time embedding and as one token for cross-attention. Index `classes` is the null
    class."""

    column = "label"

    def __init__(self, classes: int, names: list[str] | None = None, dim: int = 128, drop_prob: float = 0.1):
        super().__init__(drop_prob)
        self.classes, self.names = classes, list(names or [])
        self.token_dim = self.vector_dim = dim
        self.embedding = nn.Embedding(classes + 1, dim)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in table.classes]
        count = len(names) or int(table.columns["label"].max()) + 1
        return {"classes": count, "names": names}

    def null_values(self, n: int) -> Tensor:
        return torch.full((n,), self.classes)

    @property
    def table(self) -> dict[str, int]:
        """The number of each class by its name; of several of one name the first."""
        found: dict[str, int] = {}
        for i, name in enumerate(self._all_names):
            found.setdefault(name, i)
        return found

    @property
    def _all_names(self) -> list[str]:
        return self.names or [str(i) for i in range(self.classes)]

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """By name, since a number may be another class's name."""
        names, table = self._all_names, self.table
        return {self.column: [names[i] if table[names[i]] == i else i for i in batch[self.column].tolist()]}

    def parse(self, values: Any) -> Tensor:
        """Names of classes, or numbers where no class is called so, -> (B,) int64."""
        table = self.table
        return torch.tensor([self._index(v, table) for v in values])

    def _index(self, value: Any, table: Mapping[str, int]) -> int:
        if str(value) in table:
            return table[str(value)]
        try:
            index = int(str(value))
        except ValueError:
            raise UserError(f"no class is called '{value}'.{did_you_mean(str(value), self.names)}") from None
        same = [i for name, i in table.items() if name.isdecimal() and int(name) == index]
        if len(same) == 1:  # 1 for 001
            return same[0]
        if not 0 <= index < self.classes:
            raise UserError(self._unknown(index, table))
        if any(name.isdecimal() for name in self.names):
            _log.warning("no class is called %s: it is the number of class '%s'", index, self.names[index])
        return index

    def _unknown(self, index: int, table: Mapping[str, int]) -> str:
        """Of classes that are called by other numbers than their own, the numbers alone would mislead."""
        if any(name.isdecimal() and int(name) != i for name, i in table.items()):
            return f"no class is called {index}: this model knows {classes_line(table)}."
        known = f": {classes_line(table)}" if self.names else ""
        return f"label {index} is out of range: this model knows 0 to {self.classes - 1}{known}."

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        labels = values if drop is None else values.masked_fill(drop, self.classes)
        vector = self.embedding(labels)  # (B, D)
        return Cond(vector=vector, tokens=vector[:, None], mask=labels.new_ones(len(labels), 1, dtype=torch.bool))


@register
class Text(Part):
    """A caption through a byte-level BPE and a small Transformer trained with the denoiser, one token each to attend
    to.

    `pooled` also adds the mean over the tokens to the time embedding. The empty caption is the null condition.
    """

    column = "text"

    def __init__(
        self,
        tokenizer_json: str,
        length: int | None = None,
        dim: int = 128,
        depth: int = 1,
        heads: int = 4,
        pooled: bool = True,
        drop_prob: float = 0.1,
        vocab_size: int = 4096,
    ):
        super().__init__(drop_prob)
        self.tokenizer = tokenizer.load(tokenizer_json)
        self.length = length or 64
        self.token_dim, self.vector_dim = dim, dim if pooled else None
        self.encoder = TextTransformer(self.tokenizer.get_vocab_size(), self.length, dim, depth=depth, heads=heads)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        captions = tokenizer.flatten(table.columns["text"])
        json = tokenizer.train(captions, options.get("vocab_size", 4096))
        return {"tokenizer_json": json, "length": options.get("length") or tokenizer.fitting_length(json, captions)}

    def null_values(self, n: int) -> list[str]:
        return [""] * n

    def parse(self, values: Any) -> list[str]:
        return [replace_surrogates(str(v)) for v in values]

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        return tokenizer.cut(self.tokenizer, captions, self.length)

    def reader(self) -> Callable[[list[str]], Tokens]:
        return Tokenize(self.tokenizer.to_str(), self.length)

    def forward(self, values: list[str] | Tokens, drop: Tensor | None = None) -> Cond:
        if not isinstance(values, Tokens):
            values = Tokens(*tokenizer.encode(self.tokenizer, without(values, drop), self.length))
        device = self.encoder.position_embedding.device
        ids, mask = send(values.ids, device), send(values.mask, device)  # (B, L)
        states = self.encoder(ids, mask)  # (B, L, D)
        vector = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if self.vector_dim else None
        return Cond(vector=vector, tokens=states, mask=mask)


class Tokenize:
    """Captions to `Tokens`, by a tokenizer that travels as text."""

    def __init__(self, tokenizer_json: str, length: int):
        self.tokenizer_json, self.length = tokenizer_json, length

    def __call__(self, captions: list[str]) -> Tokens:
        return Tokens(*tokenizer.encode(tokenizer.load(self.tokenizer_json), captions, self.length))
