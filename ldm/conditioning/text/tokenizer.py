"""A byte-level BPE that is trained on the data's own captions, and stored as JSON text in the model's config."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.text.truncation import Cut, lost, may_exceed

END = "<end>"
_WITHOUT_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def flatten(captions: Iterable[str | list[str]]) -> list[str]:
    """All captions in one list; an image may have several."""
    return [text for entry in captions for text in ([entry] if isinstance(entry, str) else entry)]


def train(captions: list[str], vocab_size: int) -> str:
    """A tokenizer of at most `vocab_size` tokens, trained on `captions`, as JSON text.

    It knows every byte, whether captions have it or not: otherwise unknown bytes would be dropped silently, and a
    prompt in another language would lose its letters. Scripts that are written without spaces are split into
    characters, because otherwise a whole clause would be one word and could become one token. Every caption ends in
    END, so that the empty one has a token too.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(" ", "first", split=False),  # the first word has the same token as elsewhere
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
    """The tokenizer stored as `json`. It is shared by all who load the same text, so it must not be changed."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json)


def fitting_length(json: str, captions: list[str], most: int = 256) -> int:
    """The length in tokens of the longest caption and a quarter more, as a multiple of 8 and at most `most`."""
    pieces = (captions[i : i + 4096] for i in range(0, len(captions), 4096))  # an encoding is far larger than its text
    longest = max(len(e.ids) for piece in pieces for e in load(json).encode_batch(piece))
    return min(-(-int(1.25 * longest) // 8) * 8, most)


def cut(bpe: Any, captions: Iterable[str], length: int) -> list[Cut]:
    """Those of `captions` that `encode` cuts to `length` tokens."""
    bpe.encode_special_tokens = True
    suspects, found = may_exceed(captions, length), []
    for i in range(0, len(suspects), 4096):
        some = suspects[i : i + 4096]
        for caption, e in zip(some, bpe.encode_batch(some), strict=True):
            if len(e.ids) > length:
                found.append(Cut(caption, len(e.ids), length, lost(caption, e, length - 1)))
    return found


def count(bpe: Any, caption: str) -> int:
    """The tokens of a caption, special ones included, as `cut` counts them."""
    bpe.encode_special_tokens = True
    return len(bpe.encode(caption).ids)


def encode(bpe: Any, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) int64 and a mask (B, L), True on tokens; L is the length of the longest caption.

    Captions of more than `length` tokens are cut; `cut` lists them.
    """
    bpe.encode_special_tokens = True  # END inside a caption is text like any other
    rows = [e.ids for e in bpe.encode_batch(captions)]
    end = bpe.token_to_id(END)
    rows = [ids if len(ids) <= length else [*ids[: length - 1], end] for ids in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.arange(longest) < torch.tensor([len(r) for r in rows])[:, None]  # (B, L)
    return ids, mask
