"""The images of a folder or a .zip that may be samples, before anything is said of splits and classes."""

import posixpath
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ldm.common.errors import UserError, did_you_mean
from ldm.data.folders.companions import others
from ldm.data.reading.beside import is_image, is_junk
from ldm.data.reading.layout import Layout, Meant, inside, is_named, layout_of
from ldm.data.reading.metadata_files import is_metadata
from ldm.data.reading.sample import Seen
from ldm.data.reading.store import FolderStore, Store


class Part(NamedTuple):
    """A store with its images by what they are: `left` are no samples, by the reason, unless metadata name them; `gone`
    are left out whatever names them; `classes` is whether folders are meant for classes."""

    store: Store
    images: Sequence[str]
    left: Mapping[str, str]
    gone: Collection[str]
    classes: bool | None

    @classmethod
    def of(cls, store: Store, meant: Meant, known: Collection[str], seen: Seen, held: Collection[str] = ()) -> "Part":
        """All but the images in `held`. `known` are training's classes, if these images are to be validated on."""
        images = [path for path in store.entries if is_image(path)]
        named = [path for path in images if is_named(path, meant.without)]
        seen.leave(named, "in data.without")
        gone = {*named, *held}
        images = [path for path in images if path not in gone]
        is_described = any(map(is_metadata, store.entries))
        left = others(store, images, meant, known, Seen() if is_described else seen)
        own = [path for path in images if not is_junk(path) and (is_described or path not in left)]
        return cls(store, own, left, gone, meant.classes)

    def layout(self, has_val_root: bool, seen: Seen) -> Layout:
        """The splits. Says which images are of neither."""
        found = layout_of(self.images, has_val_root, seen, self.classes)
        beside = [path for path in self.left if not found.trains(path) and not found.validates(path)]
        seen.left_out |= {path: self.left[path] for path in beside if path not in self.images}
        return found


def held_out(store: Store, other: Store, meant: Meant) -> list[str]:
    """The images of the store that are the very files that `other`, data.val_root, validates on, also by links.

    None where that is all: whoever names one place for both means it.
    """
    part = Part.of(other, meant, (), Seen())
    folders = part.layout(False, Seen()).val or ("",)
    validated = [path for path in part.images if inside(path, folders)]
    images = [path for path in store.entries if is_image(path)]
    found = _same(store, images, other, validated)
    return found if len(found) < len(images) else []


def check_names(store: Store, names: Sequence[str]) -> None:
    """Raises UserError for a name in data.without that no folder has, or a pattern that no file has."""
    folders = {posixpath.dirname(path) for path in store.entries}
    steps = {step for folder in folders for step in folder.split("/")}
    for name in names:
        if not any(is_named(path, (name,)) for path in store.entries):
            what = "file like" if "*" in name else "folder"
            raise UserError(f"data.without: {store.where} has no {what} '{name}'.{did_you_mean(name, steps)}")


def _same(store: Store, images: Sequence[str], other: Store, validated: Sequence[str]) -> list[str]:
    if isinstance(store, FolderStore) and isinstance(other, FolderStore):
        files = {_identity(other, path) for path in validated} - {None}
        return [path for path in images if _identity(store, path) in files]
    return [path for path in images if path in {*validated}] if store.where == other.where else []


def _identity(store: FolderStore, path: str) -> tuple[int, int] | None:
    """What two names of one file have in common; None for a dead link."""
    try:
        status = (store.root / path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
