r"""The syntax of prompts for frozen CLIP encoders: `(word:1.2)` weighs, `\(` is a bracket, `BREAK` ends a chunk.

The states of the tokens of `(word:1.2)` are multiplied by 1.2, in nested brackets by the product, and the states of a
chunk are then scaled to have the mean that they had, as AUTOMATIC1111's web UI does. Brackets without a number are text
here. A prompt with the syntax is split into chunks of as many tokens as an encoder reads between its marks of begin and
end, and at each BREAK. Chunks are encoded by themselves, and their states follow each other; pooled states are those of
the first. Prompts without the syntax are cut, as everywhere.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ldm.common.devices import send
from ldm.networks import Cond

BREAK = "BREAK"
_BREAK = re.compile(r"(?<![^\s(])BREAK(?![^\s):])")
_PIECE = re.compile(r"\\[()]|\(|:\s*(\d+\.?\d*|\.\d+)\s*\)|\)|[^\\():]+|.", re.DOTALL)


class Weighted(NamedTuple):
    """A piece of a prompt and the weight of its tokens."""

    text: str
    weight: float


class Chunk(NamedTuple):
    """Token `ids` with the marks of begin and end, and padding, and a weight for each; `length` is without padding."""

    ids: list[int]
    weights: list[float]
    length: int


def parse(prompt: str) -> list[Weighted] | None:
    """The pieces of a prompt; None for a prompt that doesn't use the syntax."""
    pieces: list[Weighted] = []
    opened: list[int] = []  # pieces that are an opening bracket without its closing one
    uses_syntax = bool(_BREAK.search(prompt))
    for match in _PIECE.finditer(prompt):
        text = match[0]
        if match[1] is not None and opened:
            start = opened.pop()
            pieces[start:] = [Weighted(t, weight * float(match[1])) for t, weight in pieces[start + 1 :]]
            uses_syntax = True
            continue
        if text in (r"\(", r"\)"):
            text, uses_syntax = text[1], True
        elif text == "(":
            opened.append(len(pieces))
        elif text.endswith(")") and opened:
            opened.pop()
        pieces.append(Weighted(text, 1.0))
    return _broken(_joined(pieces)) if uses_syntax else None


def chunks(pieces: Sequence[Weighted], tokenizer: Any, limit: int) -> list[Chunk]:
    """The chunks of `limit` tokens, marks included, that hold the tokens of all pieces; at least one."""
    parts: list[list[tuple[int, float]]] = [[]]  # token and weight, between BREAKs
    for text, weight in pieces:
        if text == BREAK:
            parts.append([])
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        parts[-1] += [(one, weight) for one in ids]
    room = limit - 2
    found = [_chunk(part[i : i + room], tokenizer, limit) for part in parts for i in range(0, len(part), room)]
    return found or [_chunk([], tokenizer, limit)]


def weigh(states: Tensor, weights: Tensor) -> Tensor:
    """`states` (N, L, D) of N chunks times `weights` (N, L), scaled to the mean that each chunk had.

    A chunk whose weights are all 1 isn't changed, nor is one scaled whose new mean is 0.
    """
    weighted = states * weights[..., None]
    before, after = states.mean((1, 2), keepdim=True), weighted.mean((1, 2), keepdim=True)
    scale = torch.where(after == 0, torch.ones_like(after), before / after)
    is_plain = (weights == 1).all(1)[:, None, None]
    return torch.where(is_plain, states, weighted * scale)


def _chunk(tokens: Sequence[tuple[int, float]], tokenizer: Any, limit: int) -> Chunk:
    ids, weights = [one for one, _ in tokens], [weight for _, weight in tokens]
    length = len(ids) + 2
    padding = limit - length
    padded = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
    return Chunk(padded, [1.0, *weights, *[1.0] * (1 + padding)], length)


def _joined(pieces: Sequence[Weighted]) -> list[Weighted]:
    """Neighbours of the same weight as one piece, so that their words are tokenized together."""
    found: list[Weighted] = []
    for text, weight in pieces:
        if found and found[-1].weight == weight:
            found[-1] = Weighted(found[-1].text + text, weight)
        else:
            found.append(Weighted(text, weight))
    return found


def _broken(pieces: Sequence[Weighted]) -> list[Weighted]:
    """The pieces with each BREAK as a piece of its own."""
    found: list[Weighted] = []
    for text, weight in pieces:
        for i, part in enumerate(_BREAK.split(text)):
            found += [Weighted(BREAK, 1.0)] if i else []
            found += [Weighted(part, weight)] if part.strip() else []
    return found


def counts(prompts: Iterable[str], tokenizer: Any, limit: int) -> dict[str, int]:
    """The prompts that use the syntax, with the number of their chunks."""
    used = {prompt for prompt in prompts if parse(prompt) is not None}
    return {prompt: len(_chunks_of(prompt, tokenizer, limit)) for prompt in used}


def encode(
    prompts: Sequence[str],
    least: Sequence[int],
    tokenizer: Any,
    *,
    limit: int,
    masked: bool,
    run: Callable[[Tensor, Tensor], Cond],
) -> Cond:
    """The states of prompts, joined from those of their chunks; prompt i has at least `least[i]` chunks.

    `run` computes those of ids (N, L) and mask (N, L). Prompts with fewer chunks than others are padded, and `mask`
    is False there. If all have equally many chunks, `mask` is None, except with `masked`, which never attends to
    padding.
    """
    each = [_chunks_of(prompt, tokenizer, limit) for prompt in prompts]
    for own, wanted in zip(each, least, strict=True):
        own += chunks([], tokenizer, limit) * (wanted - len(own))
    flat = [chunk for own in each for chunk in own]
    ids = torch.tensor([chunk.ids for chunk in flat])  # (N, L)
    used = torch.arange(limit) < torch.tensor([chunk.length for chunk in flat])[:, None]
    cond = run(ids, used.long())
    assert cond.tokens is not None
    weights = send(torch.tensor([chunk.weights for chunk in flat]), cond.tokens.device)
    states = weigh(cond.tokens, weights)
    keep = torch.ones_like(weights, dtype=torch.bool) if cond.mask is None else cond.mask
    lengths = [len(own) for own in each]
    tokens = pad_sequence([part.flatten(0, 1) for part in states.split(lengths)], batch_first=True)  # (B, L', D)
    mask = pad_sequence([part.flatten() for part in keep.split(lengths)], batch_first=True)  # (B, L')
    firsts = list(itertools.accumulate([0, *lengths[:-1]]))
    vector = None if cond.vector is None else cond.vector[firsts]
    return Cond(vector=vector, tokens=tokens, mask=mask if masked or len(set(lengths)) > 1 else None)


def _chunks_of(prompt: str, tokenizer: Any, limit: int) -> list[Chunk]:
    pieces = parse(prompt)
    if pieces is None:
        return chunks([Weighted(prompt, 1.0)], tokenizer, limit)[:1]  # cut, as `FrozenText.encode` cuts it
    return chunks(pieces, tokenizer, limit)
