"""What a listing found besides its samples, and the wording that its sentences share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.common.errors import printable


@dataclass
class Findings:
    """What a listing found besides its samples.

    - `left_out`: images that aren't used, by path, with the reason;
    - `warnings`: sentences about what may not be what the user intended;
    - `remarks`: sentences that are merely good to know;
    - `read`: the files beside the images that were used;
    - `unread`: the other files beside them, by path, with the reason;
    - `outside`: images that metadata name and that are not in the split that was listed, by path, with the metadata
      file;
    - `group_column`: the column of metadata whose equal values mark images that belong together, if the user names one;
      `groups`: its value for each image;
    - `class_note`: what the line that lists folders as classes adds;
    - `splits`: each image's word in the `split_column` of metadata, such as train.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    read: set[str | None] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    class_note: str = ""
    splits: dict[str, str] = field(default_factory=dict)
    split_column: str = ""
    group_column: str | None = None
    groups: dict[str, str] = field(default_factory=dict)

    def leave_out(self, paths: Iterable[str], reason: str) -> None:
        """Records images that aren't used."""
        self.left_out |= dict.fromkeys(paths, reason)

    def mark_unread(self, paths: Iterable[str], reason: str) -> None:
        """Records files beside the images that aren't read."""
        self.unread |= dict.fromkeys(paths, reason)

    def warn(self, sentence: str) -> None:
        """Adds a warning, once however often it is given."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def remark(self, sentence: str) -> None:
        """Adds a remark, once however often it is given."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)


def plural(n: int, noun: str) -> str:
    """'1 image', '2 images'"""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def examples(names: Mapping[str, Any] | Sequence[str], most: int = 3) -> str:
    """The first few names, separated by commas, with an ellipsis where there are more."""
    found = list(names)
    return ", ".join(map(printable, found[:most])) + (", ..." if len(found) > most else "")
