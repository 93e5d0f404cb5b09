"""Captions and prompts that are longer than a text encoder reads: what of them is left out, and how that is said."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

log = logging.getLogger("ldm")
SHOWN = 3  # prompts that are told of one by one
WORDS, LETTERS = 50, 400  # of what is left out that are told
_reported: set[int] = set()  # hashes of the captions that a run of training has told of


class Cut(NamedTuple):
    """A caption of more `tokens` than the `limit` of an encoder, and the words of it that are `lost`."""

    caption: str
    tokens: int
    limit: int
    lost: str

    def __str__(self) -> str:
        return f"a prompt has {self.tokens} tokens, and the model reads {self.limit}; left out is: {bounded(self.lost)}"


class Conditions(Protocol):
    """A conditioner, which stands above: its `parts` by name, each with `cut(captions)`, the captions that it cuts."""

    @property
    def parts(self) -> Any: ...


def may_exceed(captions: Iterable[str], limit: int) -> list[str]:
    """Those that can have more than `limit` tokens, marks included: a token of text is a byte or more."""
    return [caption for caption in captions if len(caption.encode()) + 3 > limit]


def lost(caption: str, encoding: Any, kept: int) -> str:
    """The end of `caption` from the first word that isn't whole in the first `kept` tokens of its `encoding`."""
    words, first = encoding.word_ids, kept
    while first > 0 and words[first] is not None and words[first - 1] == words[first]:
        first -= 1
    return caption[encoding.offsets[first or kept][0] :].strip()


def report(conditioner: "Conditions", captions: Sequence[str]) -> None:
    """Tells once, before training, how many of the data's captions are cut; pictures of them aren't told of again."""
    for name, part in conditioner.parts.items():
        if not (cuts := part.cut(captions)):
            continue
        _reported.update(hash(cut.caption) for cut in cuts)
        most = max(cuts, key=lambda cut: cut.tokens)
        log.warning(
            "%d of %d captions are cut to the %d tokens that conditioner.%s reads; the longest has %d: %s",
            *(len(cuts), len(captions), most.limit, name, most.tokens, shortened(most.caption)),
        )


def sentences(conditioner: "Conditions", prompts: Iterable[str]) -> list[str]:
    """What is left out of prompts, in words; beyond a few their number and the first."""
    distinct = [prompt for prompt in dict.fromkeys(prompts) if hash(prompt) not in _reported]
    told = []
    for part in conditioner.parts.values():
        cuts = part.cut(distinct)
        told += [str(cut) for cut in (cuts[:1] if len(cuts) > SHOWN else cuts)]
        if len(cuts) > SHOWN:
            told[-1] = f"{len(cuts)} of {len(distinct)} prompts are too long; {told[-1]}"
    return told


def shortened(caption: str, most: int = 80) -> str:
    return caption if len(caption) <= most else caption[: most - 3] + "..."


def bounded(text: str) -> str:
    """The first words of `text`, or letters where it has few blanks, and how many more there are."""
    words = text.split()
    start = " ".join(words[:WORDS]) if len(words) > WORDS else text
    if len(start) > LETTERS:
        return f"{text[:LETTERS]}... and {len(text) - LETTERS} more letters"
    return start if len(words) <= WORDS else f"{start} ... and {len(words) - WORDS} more words"
