"""Paths inside a store, with forward slashes: their parts, and what they say about a file."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from ldm.images import IMAGES

T = TypeVar("T")
# Folders of images that programs create for themselves.
_SURE_JUNK = {
    *("__macosx", "@eadir", "lost+found", "system volume information"),
    *("$recycle.bin", "#recycle", "@recycle", "#snapshot", "@recently-snapshot"),
}
_JUNK = {*_SURE_JUNK, "thumbs", "thumbnails", "thumbnail"}
JUNK = "in folders that programs create"
_JUNK_LIKE = re.compile(r"thumb(nail)?s?[-_ ]?\d+(x\d+)?|.*\.lrdata")  # thumbnails128x128; Lightroom's


def is_image(path: str) -> bool:
    """Whether the ending is that of an image that can be read."""
    return ending(path) in IMAGES


def ending(path: str) -> str:
    """The ending in lower case with its dot. Faster than pathlib: a second for a million paths."""
    dot = path.rfind(".")
    return path[dot:].lower() if dot > path.rfind("/") + 1 else ""


def stem(path: str) -> str:
    """The path without its ending."""
    return path[: len(path) - len(ending(path))]


def is_junk(path: str, sure: bool = False) -> bool:
    """Whether the file lies in a folder that a program creates for itself; if `sure`, one that nobody else names so."""
    steps = path.lower().split("/")[:-1]
    if sure:
        return not _SURE_JUNK.isdisjoint(steps)
    is_derived = "/resources/derivatives/" in f"/{path}" or "/resources/renders/" in f"/{path}"  # by Apple's Photos
    return is_derived or any(step in _JUNK or _JUNK_LIKE.fullmatch(step) for step in steps)


def inside(path: str, folders: Collection[str]) -> bool:
    """Whether a path lies in one of the folders; "" contains everything."""
    if not folders or "" in folders:
        return bool(folders)
    if len(folders) < 4:
        return any(path.startswith(folder + "/") for folder in folders)
    return any(path[:i] in folders for i, letter in enumerate(path) if letter == "/")


def common_folder(paths: Collection[str]) -> str:
    """The deepest folder that all of `paths` lie in."""
    return posixpath.commonpath({posixpath.dirname(path) for path in paths}) if paths else ""


def first_folder(path: str, base: str) -> str | None:
    """The folder right below `base` on the path; None for a file right in `base`."""
    rest = path[len(base) + 1 if base else 0 :]
    return rest.split("/")[0] if "/" in rest else None


def join(base: str, name: str) -> str:
    """The path of `name` in the folder `base`, which may be ""."""
    return f"{base}/{name}" if base else name


def evenly_spaced(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of the items, evenly spaced, beginning with the first."""
    return items[:: -(-len(items) // most) or 1]


class Tails:
    """Finds images by the last parts of a path, for metadata that were written in another place or name only files."""

    def __init__(self, paths: Iterable[str]):
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path in filter(is_image, paths):
            name = posixpath.basename(path).lower()
            self.by_name[name].append(path)
            self.by_name[stem(name)].append(path)

    def find(self, name: str) -> str | None:
        """The image whose path agrees with `name` in most of its last folders, regardless of case and, where `name` has
        none, of the ending. None if no image does, or if several agree equally well."""
        *folders, last = re.split(r"[/\\]", name.strip().lower())
        if ".." in folders:
            return None
        counts = {path: _agreeing(path.lower().split("/")[:-1], folders) for path in self.by_name.get(last, ())}
        best = [path for path, count in counts.items() if count == max(counts.values())]
        return best[0] if len(best) == 1 else None


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of last items in which both agree."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
