"""Paths inside a store, with forward slashes: their parts, and what they say about a file."""

import posixpath
import re
from collections.abc import Collection, Sequence
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
    return any(step in _JUNK or _JUNK_LIKE.fullmatch(step) for step in steps)


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
    """At most `most` of the items, at equal distances, the first included."""
    return items[:: -(-len(items) // most) or 1]
