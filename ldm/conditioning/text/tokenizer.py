"""A byte-level BPE trained on the data's own captions, kept as JSON text in the model's config."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.text.truncation import Cut, lost, may_exceed

END = "<end>"
_WITHOUT_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def flatten(captions: Iterable[str | list[str]]) -> list[str]:
    """Every caption; an image may have several."""
    return [text for entry in captions for text in ([entry] if isinstance(entry, str) else entry)]


def train(captions: list[str], vocab_size: int) -> str:
    """The tokenizer as JSON text.

    The whole byte alphabet is kept, seen or not: without it bytes that the captions lack are dropped in silence, and a
    prompt in another language loses its letters. Scripts that write without blanks are cut into characters: a whole
    clause would else be one word, and merge into one token. Every caption ends in END, so that the empty one has a
    token too.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(" ", "first", split=False),  # the first word is written as any other
            pre_tokenizers.Split(Regex(_WITHOUT_BLANKS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(set(captions)), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, bpe.token_to_id(END))])
    return bpe.to_str()


@lru_cache(maxsize=8)
def load(json: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json)


def fitting_length(json: str, captions: list[str], most: int = 256) -> int:
    """The longest caption in tokens, with a quarter of room, a multiple of 8, at most `most`."""
    pieces = (captions[i : i + 4096] for i in range(0, len(captions), 4096))  # an encoding is far larger than its text
    longest = max(len(e.ids) for piece in pieces for e in load(json).encode_batch(piece))
    return min(-(-int(1.25 * longest) // 8) * 8, most)


def cut(bpe: Any, captions: Iterable[str], length: int) -> list[Cut]:
    """Those of `captions` that `encode` cuts."""
    bpe.encode_special_tokens = True
    suspects, found = may_exceed(captions, length), []
    for i in range(0, len(suspects), 4096):
        some = suspects[i : i + 4096]
        for caption, e in zip(some, bpe.encode_batch(some), strict=True):
            if len(e.ids) > length:
                found.append(Cut(caption, len(e.ids), length, lost(caption, e, length - 1)))
    return found


def encode(bpe: Any, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and mask (B, L), True on tokens; L is the longest of the batch.

    Captions longer than `length` are cut; `cut` says which and where.
    """
    bpe.encode_special_tokens = True  # END in a caption's own words is text like any other
    rows = [e.ids for e in bpe.encode_batch(captions)]
    end = bpe.token_to_id(END)
    rows = [ids if len(ids) <= length else [*ids[: length - 1], end] for ids in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.arange(longest) < torch.tensor([len(r) for r in rows])[:, None]  # (B, L)
    return ids, mask
