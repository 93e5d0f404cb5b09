"""Captions as a condition, through a small text encoder that is trained together with the denoiser."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from ldm.common.annotations import replace_surrogates
from ldm.common.devices import send
from ldm.common.registry import register
from ldm.conditioning.on_host import Tokens, without
from ldm.conditioning.part import Part
from ldm.conditioning.text import tokenizer
from ldm.conditioning.text.truncation import Cut
from ldm.networks import Cond, TextTransformer


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
