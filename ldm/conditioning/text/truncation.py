"""Captions and prompts that are longer than a text encoder reads: which words are left out, and warnings of it."""

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

log = logging.getLogger("ldm")
SHOWN = 3  # up to so many cut prompts have a warning each
WORDS, LETTERS = 50, 400  # at most so many of the words or letters that are left out are shown
_reported: set[int] = set()  # hashes of the captions that a training run has warned of


class Cut(NamedTuple):
    """A caption with more `tokens` than the `limit` of an encoder, and its words that are `lost`."""

    caption: str
    tokens: int
    limit: int
    lost: str

    def __str__(self) -> str:
        return (
            f"a prompt has {self.tokens} tokens, but the model reads only {self.limit}; this part is left "
            f"out: {bounded(self.lost)}"
        )


class CutClip(Cut):
    """A prompt that a CLIP encoder cuts, and would read in chunks: see `ldm.conditioning.text.prompts`."""

    def __str__(self) -> str:
        return f"{super().__str__()}; a prompt that ends with BREAK is read in chunks"


class HasParts(Protocol):
    """What this module needs of a `Conditioner`, which it can't import."""

    @property
    def parts(self) -> Any:
        """Conditions by name, each with methods `cut(captions)` and `cut_prompts(prompts)`."""
        ...


def may_exceed(captions: Iterable[str], limit: int) -> list[str]:
    """The captions that can have more than `limit` tokens, special ones included: a token is at least one byte."""
    return [caption for caption in captions if len(caption.encode()) + 3 > limit]


def lost(caption: str, encoding: Any, kept: int) -> str:
    """The end of `caption` from the first word that isn't whole in the first `kept` tokens of its `encoding`."""
    words, first = encoding.word_ids, kept
    while first > 0 and words[first] is not None and words[first - 1] == words[first]:
        first -= 1
    return caption[encoding.offsets[first or kept][0] :].strip()


def cuts(tokenizer: Any, captions: Iterable[str], limit: int) -> list[Cut]:
    """Those of `captions` that have more than `limit` tokens by a tokenizer of transformers."""
    suspects, found = may_exceed(captions, limit), []
    for i in range(0, len(suspects), 4096):
        some = suspects[i : i + 4096]
        encoded = tokenizer(some, verbose=False)
        for row, (caption, ids) in enumerate(zip(some, encoded["input_ids"], strict=True)):
            if len(ids) > limit:
                ends = len(list(itertools.takewhile(lambda id: id in tokenizer.all_special_ids, reversed(ids))))
                if encoded.is_fast:
                    rest = lost(caption, encoded.encodings[row], limit - ends)
                else:
                    rest = tokenizer.decode(ids[limit - ends :], skip_special_tokens=True).strip()
                found.append(Cut(caption, len(ids), limit, rest))
    return found


def report(conditioner: HasParts, captions: Sequence[str]) -> None:
    """Warns once, before training, of captions of the data that are cut. Images of them cause no further warnings."""
    for name, part in conditioner.parts.items():
        if not (found := part.cut(captions)):
            continue
        _reported.update(hash(cut.caption) for cut in found)
        most = max(found, key=lambda cut: cut.tokens)
        log.warning(
            "%d of %d captions are cut to the %d tokens that conditioner.%s reads; the longest has %d: %s",
            len(found),
            len(captions),
            most.limit,
            name,
            most.tokens,
            shortened(most.caption),
        )


def sentences(conditioner: HasParts, prompts: Iterable[str]) -> list[str]:
    """Sentences on the words of prompts that are left out; beyond SHOWN prompts, on their number and the first."""
    distinct = [prompt for prompt in dict.fromkeys(prompts) if hash(prompt) not in _reported]
    words = []
    for part in conditioner.parts.values():
        found = part.cut_prompts(distinct)
        if len(found) > SHOWN:
            words.append(f"{len(found)} of {len(distinct)} prompts are too long; {found[0]}")
        else:
            words += [str(cut) for cut in found]
    return words


def shortened(caption: str, most: int = 80) -> str:
    """The caption, with "..." at its end if it has more than `most` letters."""
    return caption if len(caption) <= most else caption[: most - 3] + "..."


def bounded(text: str) -> str:
    """The first words of `text`, or its first letters if it has few spaces, and how many more there are."""
    words = text.split()
    start = " ".join(words[:WORDS]) if len(words) > WORDS else text
    if len(start) > LETTERS:
        return f"{text[:LETTERS]}... and {len(text) - LETTERS} more letters"
    return start if len(words) <= WORDS else f"{start} ... and {len(words) - WORDS} more words"
