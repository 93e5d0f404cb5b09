"""Captions in numbers: how many are missing, their lengths, what they share, their words and tags."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TAG_WORDS, _TAGS = 3, 3  # captions of at least so many parts between commas, of at most so many words, are tags
_IN_ALL, _LETTERS = 0.95, 3  # words of so many letters that so large a share of the captions has are in nearly all
_SIDES = re.compile(r"\b(left|right|links|rechts|gauche|droite|izquierda|derecha)\b|[左右]", re.IGNORECASE)


@dataclass
class Texts:
    """What N captions have in common.

    `missing` are the numbers of images without a caption, `lengths` the numbers of words in the others. `words` and
    `tags` count in how many captions each occurs, `shared` are words in nearly all captions, `same` is the caption that
    all images have, and `repeated` the number of captions that other images have too. `sides` are the numbers of images
    whose caption says left or right.
    """

    missing: np.ndarray
    lengths: np.ndarray
    words: Counter[str]
    tags: Counter[str]
    shared: list[str]
    same: str | None
    repeated: int
    sides: list[int]


def texts_of(captions: Sequence[str | list[str]]) -> Texts:
    """Statistics of captions. In a list of alternatives, each counts."""
    missing = np.array([i for i, each in enumerate(captions) if not any(alternatives(each))], np.int64)
    flat = [caption for each in captions for caption in alternatives(each) if caption]
    spoken = [[word.lower() for word in _WORD.findall(caption)] for caption in flat]
    words = Counter(word for caption in spoken for word in set(caption))
    counts = Counter(flat)
    return Texts(
        missing=missing,
        lengths=np.array([len(caption) for caption in spoken], np.int64),
        words=words,
        tags=_tags(flat),
        shared=[w for w, count in words.most_common() if count >= _IN_ALL * len(flat) and len(w) >= _LETTERS],
        same=flat[0] if len(counts) == 1 and len(flat) > 1 else None,
        repeated=sum(count for count in counts.values() if count > 1),
        sides=[i for i, each in enumerate(captions) if says_sides(alternatives(each))],
    )


def alternatives(caption: str | list[str]) -> list[str]:
    """The captions of an image."""
    return [caption] if isinstance(caption, str) else list(caption)


def says_sides(captions: Iterable[str]) -> bool:
    """Whether a caption contains left or right, which would be wrong for the mirror image."""
    return any(_SIDES.search(caption) for caption in captions)


def _tags(captions: Sequence[str]) -> Counter[str]:
    """In how many captions each tag occurs; empty where most captions aren't lists of tags."""
    parts = [[part.strip() for part in caption.split(",") if part.strip()] for caption in captions]
    lists = [tags for tags in parts if len(tags) >= _TAGS and np.mean([len(tag.split()) for tag in tags]) <= _TAG_WORDS]
    if 2 * len(lists) < len(captions) or not captions:
        return Counter()
    return Counter(tag for tags in parts for tag in set(tags))
