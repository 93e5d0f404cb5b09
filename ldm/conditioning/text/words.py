"""New words of a frozen text encoder (Gal et al. 2022, textual inversion): tokens beyond its vocabulary.

The encoder itself isn't changed: while a block of `embedded` runs, tokens beyond the
vocabulary have the embeddings that the block was given. A word of several vectors has a token for each, and stands for
all of them in a caption, under the names that diffusers gives them.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError


class Shared(list[Any]):
    """A list whose elements a deep copy shares: tokenizers, which nothing changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return Shared(self)


def tokens_of(word: str, n: int) -> list[str]:
    """The tokens of a word of `n` vectors: WORD, WORD_1, WORD_2, ..."""
    return [word, *(f"{word}_{i}" for i in range(1, n))]


def all_tokens(words: Mapping[str, int]) -> list[str]:
    """The tokens of all `words`, numbers of vectors by word, in their order."""
    return [token for word, n in words.items() for token in tokens_of(word, n)]


def grown(tokenizer: Any, words: Mapping[str, int]) -> Any:
    """A copy of a tokenizer of transformers that knows the words, after all its own tokens."""
    from tokenizers import AddedToken

    copy = deepcopy(tokenizer)
    copy.add_tokens([AddedToken(token, single_word=True) for token in all_tokens(words)])
    return copy


def expanded(texts: Iterable[str], words: Mapping[str, int]) -> list[str]:
    """The texts with each word of several vectors replaced by its tokens, in whatever case it is written."""
    by_word = {word.lower(): " ".join(tokens_of(word, n)) for word, n in words.items() if n > 1}
    if not by_word:
        return list(texts)
    longest_first = sorted(by_word, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    return [pattern.sub(lambda match: by_word[match[0].lower()], text) for text in texts]


def check_new(word: str, n: int, tokenizer: Any, words: Mapping[str, int]) -> None:
    """Raises UserError for a `word` that can't be added to a tokenizer of transformers and the `words` added before."""
    if not word or any(c.isspace() or c in "()\\" for c in word):
        raise UserError(f"word='{word}' has to be one word, without spaces, brackets and backslashes.")
    known = {token.lower() for token in (*tokenizer.get_vocab(), *all_tokens(words))}
    if taken := [token for token in tokens_of(word, n) if token.lower() in known]:
        raise UserError(f"word='{word}': '{taken[0]}' is a token of the model already: use another, such as <{word}>.")


@dataclass
class _Active:
    """Embeddings `rows` (N, D) of the tokens from `first` on, and the `ids` (B, L) that are being embedded."""

    rows: Tensor
    first: int
    ids: Tensor | None = None


_active: ContextVar[_Active | None] = ContextVar("embeddings of new words", default=None)


@contextlib.contextmanager
def embedded(encoder: Any, rows: Tensor, first: int) -> Iterator[None]:
    """In the block `rows` (N, D) are the embeddings of the encoder's tokens from `first` on, in this thread alone."""
    table = encoder.get_input_embeddings()
    if _after not in table._forward_hooks.values():
        table.register_forward_pre_hook(_before)
        table.register_forward_hook(_after)
    token = _active.set(_Active(rows, first))
    try:
        yield
    finally:
        _active.reset(token)


def _before(table: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    active = _active.get()
    if active is None:
        return None
    active.ids = args[0]
    return (args[0].masked_fill(args[0] >= active.first, 0),)


def _after(table: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    active = _active.get()
    if active is None or active.ids is None:
        return None
    rows = active.rows.to(output)[(active.ids - active.first).clamp(min=0)]  # (B, L, D)
    return torch.where((active.ids >= active.first)[..., None], rows, output)


class WithWords:
    """Words beyond the vocabulary of a frozen encoder: `words`, the number of vectors of each, and their embeddings
    `word_rows`, (N, D) for each word, which are weights of the model."""

    words: dict[str, int]
    word_rows: nn.ParameterList
    token_dim: int | None
    _grown: list[Any]  # a tokenizer, and the one that knows the words too
    _spec: dict[str, Any]

    def start_words(self, words: Mapping[str, int]) -> None:
        """Makes weights for the embeddings of `words`, without values."""
        self.words, self._grown = dict(words), []
        rows = (torch.empty(n, self.token_dim or 0) for n in words.values())
        self.word_rows = nn.ParameterList(nn.Parameter(row, requires_grad=False) for row in rows)

    def add_word(self, word: str, rows: Tensor) -> nn.Parameter:
        """Adds a word whose tokens have the embeddings `rows` (N, D); returns them as a weight of this part.

        Raises UserError for a word that is known already, and for an encoder that isn't CLIP's.
        """
        self.check_word(word, len(rows))
        self.words, self._grown = {**self.words, word: len(rows)}, []
        self.word_rows.append(nn.Parameter(rows.detach().clone(), requires_grad=False))
        object.__setattr__(self, "_spec", self._spec | {"words": dict(self.words)})
        return self.word_rows[-1]

    def check_word(self, word: str, n: int) -> None:
        """Raises UserError for a word of `n` vectors that `add_word` can't add."""
        if (tokenizer := self.clip_tokenizer()) is None:
            raise UserError("a frozen text encoder learns new words only if it is CLIP's.")
        check_new(word, n, tokenizer, self.words)

    def clip_tokenizer(self) -> Any:
        """The tokenizer without the words, if the encoder is CLIP's; else None."""
        raise NotImplementedError

    def with_words(self, tokenizer: Any) -> Any:
        """The tokenizer, grown by the new words if there are any."""
        if not self.words:
            return tokenizer
        if not self._grown or self._grown[0] is not tokenizer:
            self._grown = Shared([tokenizer, grown(tokenizer, self.words)])
        return self._grown[1]

    @contextlib.contextmanager
    def embedding_words(self, encoder: Any, first: int) -> Iterator[None]:
        """In the block the encoder's tokens from `first` on are the words; gradients flow only to words that train."""
        learns = torch.is_grad_enabled() and any(rows.requires_grad for rows in self.word_rows)
        with torch.set_grad_enabled(learns), contextlib.ExitStack() as stack:
            if self.words:
                stack.enter_context(embedded(encoder, torch.cat(list(self.word_rows)), first))
            yield
