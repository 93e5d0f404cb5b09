"""Captions as a condition, encoded by a small text encoder that is trained together with the denoiser."""

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
    """Captions through a byte-level BPE and a small Transformer that is trained with the denoiser.

    The network attends to its states, one for each token. `pooled` also adds their mean to the time embedding. The
    empty caption is the null condition.
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
        """A tokenizer trained on the data's captions, and a length that fits them."""
        captions = tokenizer.flatten(table.columns["text"])
        json = tokenizer.train(captions, options.get("vocab_size", 4096))
        return {"tokenizer_json": json, "length": options.get("length") or tokenizer.fitting_length(json, captions)}

    def null_values(self, n: int) -> list[str]:
        """The empty caption `n` times."""
        return [""] * n

    def parse(self, values: Any) -> list[str]:
        """Captions as text that can be written in UTF-8."""
        return [replace_surrogates(str(v)) for v in values]

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        """The captions of more than `length` tokens."""
        return tokenizer.cut(self.tokenizer, captions, self.length)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt, and how many the encoder reads."""
        return tokenizer.count(self.tokenizer, prompt), self.length

    def reader(self) -> Callable[[list[str]], Tokens]:
        """The function from captions to tokens."""
        return Tokenize(self.tokenizer.to_str(), self.length)

    def forward(self, values: list[str] | Tokens, drop: Tensor | None = None) -> Cond:
        """Captions, or their tokens -> `tokens` (B, L, D) with `mask` (B, L), and `vector` (B, D) if pooled."""
        if not isinstance(values, Tokens):
            values = Tokens(*tokenizer.encode(self.tokenizer, without(values, drop), self.length))
        device = self.encoder.position_embedding.device
        ids, mask = send(values.ids, device), send(values.mask, device)  # (B, L)
        states = self.encoder(ids, mask)  # (B, L, D)
        vector = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if self.vector_dim else None
        return Cond(vector=vector, tokens=states, mask=mask)


class Tokenize:
    """Captions to `Tokens`. It holds the tokenizer as text, so that data workers can have a copy."""

    def __init__(self, tokenizer_json: str, length: int):
        self.tokenizer_json, self.length = tokenizer_json, length

    def __call__(self, captions: list[str]) -> Tokens:
        return Tokens(*tokenizer.encode(tokenizer.load(self.tokenizer_json), captions, self.length))
