"""Captions in the names of images, as EveryDream, OneTrainer and Midjourney have them: a_cat_on_a_mat_001.jpg."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import evenly_spaced, stem
from ldm.data.reading.sample import Sample

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_HASH = r"(?=[a-z]*\d)[0-9a-f]{6,}"  # with a digit, as "facade" is a word
_END = re.compile(rf"[-_ ]+({_UUID}|{_HASH})$|[-_]+\d+$| ?\(\d+\)$", re.IGNORECASE)

_PROSE, _LONG = 4, 5  # words of a name that make it look like a caption, also where several images share it
_LOOKED_AT = 1000  # names


def words_of(name: str) -> tuple[str, ...]:
    """The words in a name, without numbers and the letters in hashes."""
    return tuple(re.findall(r"(?<![^\W_])[^\W\d_]+(?![^\W_])", name))


def is_prose(name: str, least: int = _PROSE) -> bool:
    """Whether a name looks like a sentence, by its number of words."""
    return len(words_of(name)) >= least


def caption_in_name(path: str) -> str:
    """The file's name without its ending and without numbers and identifiers at its end, underscores as spaces."""
    name, before = stem(posixpath.basename(path)), ""
    while name != before:
        name, before = _END.sub("", name), name
    words = re.sub(r"[_\s]+", " ", name).strip()
    return words if re.search(r"[^\W\d_]", words) else ""


def read_names(found: Sequence[Sample]) -> None:
    """Gives each sample the caption in its name. Raises UserError if no name has one."""
    for sample in found:
        sample.text = caption_in_name(sample.image)
    if found and not any(sample.text for sample in found):
        names = examples([sample.image for sample in found])
        raise UserError(
            f"data.captions=names, but none of the {plural(len(found), 'image')} has words in its name ({names}): "
            "write captions to NAME.txt beside NAME.png, or leave the option out."
        )


def report_names(found: Sequence[Sample], findings: Findings) -> None:
    """Warns that images' names may be captions: sentences that mostly differ, or longer ones that several share."""
    names = [stem(posixpath.basename(sample.image)) for sample in evenly_spaced(found, _LOOKED_AT)]
    prose = [name for name in names if is_prose(name)]
    long = Counter(words_of(name) for name in names if is_prose(name, _LONG))
    are_shared = 2 * long.total() > len(names) and 2 * max(long.values()) <= len(names)
    if 2 * len({words_of(name) for name in prose}) > len(names) or are_shared:
        message = f"the images' names look like captions ({prose[0]}), which aren't read"
        findings.warn(f"{message}: data.captions=names reads them")
