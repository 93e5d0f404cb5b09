"""One image with what belongs to it, and what a listing of many met beside them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.common import annotations
from ldm.common.errors import printable

COLUMNS = ("text", "label", "map", "mask", "control")
PATHS = ("map", "mask", "control")  # columns that name files
# What others call our columns, the first that holds something; taken where a column of our own name doesn't.
USUAL = {
    "text": ("text", "caption", "captions", "prompt", "description", "txt"),
    "label": ("label", "labels", "class", "cls", "category"),
    "map": ("map", "label_map", "segmentation", "segmentation_map", "seg_map"),
    "mask": ("mask", "mask_image", "inpaint_mask"),
    "control": ("control", "conditioning_image", "control_image", "conditioning", "condition_image", "cond_image"),
}
Text = str | list[str] | None


@dataclass
class Sample:
    """One image and what belongs to it; paths are inside the store. `caption` is a file that holds the text, and an
    epoch visits the image `repeats` times."""

    image: str
    text: Text = None
    caption: str | None = None
    label: str | int | None = None
    map: str | None = None
    mask: str | None = None
    control: str | None = None
    repeats: int = 1


@dataclass
class Seen:
    """What a listing met beside its samples.

    `left_out` are images by path, with the reason why they aren't taken; `notes` say what may be meant otherwise than
    it was read, or wasn't read at all, and `asides` what is only good to know. `read` are the files beside the images
    that were made use of; `unread` are the others by path, with the reason. `outside` are images that metadata name, by
    path with the file that does, and that are neither there nor in the split that was listed. `splits` are words for
    train and val by image, out of the `split_column` of metadata.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    read: set[str | None] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    split_column: str = ""

    def leave(self, paths: list[str], reason: str) -> None:
        self.left_out |= dict.fromkeys(paths, reason)

    def pass_over(self, paths: Iterable[str], reason: str) -> None:
        """Files beside the images that aren't read."""
        self.unread |= dict.fromkeys(paths, reason)

    def note(self, sentence: str) -> None:
        """Once, however often it is met."""
        self.notes += [] if sentence in self.notes else [sentence]

    def aside(self, sentence: str) -> None:
        self.asides += [] if sentence in self.asides else [sentence]


def plain(name: str) -> str:
    """A column's name whatever its capitals, blanks and strokes: File Name, fileName and file_name are one."""
    return re.sub(r"[-_ ]", "", name).lower()


def usual(key: str, present: Iterable[str]) -> list[str]:
    """The names among `present` by which others call our column `key`, our own first; of a path's also with `_path` and
    the like behind."""
    order = [plain(name) for name in USUAL[key]]
    found = {}
    for name in present:
        bare = re.sub(r"(filename|filepath|path|file)$", "", plain(name)) if key in PATHS else plain(name)
        if bare in order:
            found[name] = (name != key, order.index(bare), name not in USUAL[key], name)
    return sorted(found, key=lambda name: found[name])


def text_of(value: Any) -> tuple[Text, bool]:
    """A cell's caption, or alternatives in a list; and whether all of it was taken: what is no text (a mapping,
    not-a-number, true, a gap in a list) isn't. Blanks alone are an empty caption, and among alternatives none."""
    if isinstance(value, (list, tuple)):
        parts = [_words(part) for part in value]
        return [part for part in parts if part] or None, None not in parts
    text = _words(value)
    return text, text is not None or value is None


def joined(text: Text) -> str | None:
    """A list of tags as one caption."""
    return ", ".join(text) if isinstance(text, list) else text


def _words(value: Any) -> str | None:
    if isinstance(value, str):
        words = annotations.replace_surrogates(value)  # a tool may have cut a letter between its halves
        return words if words.strip() else ""
    number = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)
    return str(value) if number else None


def plural(n: int, what: str) -> str:
    """'1 image', '2 images'"""
    return f"{n} {what}{'' if n == 1 else 's'}"


def some(paths: Mapping[str, Any] | Sequence[str], most: int = 3) -> str:
    """The first few by name."""
    names = list(paths)
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")
