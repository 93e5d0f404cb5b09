"""The images of a folder or a .zip that may be samples, before splits and classes are read from the folders."""

import posixpath
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ldm.common.errors import UserError, did_you_mean
from ldm.data.folders.excluded import excluded_images
from ldm.data.folders.pairs import paired_images
from ldm.data.reading.findings import Findings
from ldm.data.reading.metadata_files import is_metadata
from ldm.data.reading.paths import inside, is_image, is_junk
from ldm.data.reading.split_folders import FolderOptions, Layout, layout_of, matches
from ldm.data.reading.store import FolderStore, Store


class Candidates(NamedTuple):
    """The images of a store that may be samples.

    `excluded` are images that aren't samples unless metadata name them, with the reason. `removed` are images that
    aren't used even if metadata name them. `classes` is whether folders are classes; None leaves it to us.
    """

    store: Store
    images: Sequence[str]
    excluded: Mapping[str, str]
    removed: Collection[str]
    classes: bool | None

    @classmethod
    def of(
        cls,
        store: Store,
        options: FolderOptions,
        known: Collection[str],
        findings: Findings,
        validated: Collection[str] = (),
    ) -> "Candidates":
        """The images of the store, except those in `validated`. `known` are the training classes if the store is for
        validation."""
        images = [path for path in store.entries if is_image(path)]
        named = [path for path in images if matches(path, options.without)]
        findings.leave_out(named, "in data.without")
        removed = {*named, *validated, *paired_images(store, options.pairs)}
        images = [path for path in images if path not in removed]
        has_metadata = any(map(is_metadata, store.entries))
        reported = Findings() if has_metadata else findings
        excluded = excluded_images(store, images, options, known=known, findings=reported)
        own = [path for path in images if not is_junk(path) and (has_metadata or path not in excluded)]
        return cls(store=store, images=own, excluded=excluded, removed=removed, classes=options.classes)

    def layout(self, has_val_root: bool, findings: Findings) -> Layout:
        """The folders of the splits; records the images that are in neither."""
        found = layout_of(self.images, has_val_root, findings, self.classes)
        outside = [path for path in self.excluded if not found.trains(path) and not found.validates(path)]
        findings.left_out |= {path: self.excluded[path] for path in outside if path not in self.images}
        return found


def shared_with_val_root(store: Store, val_store: Store, options: FolderOptions) -> list[str]:
    """The images of the store that are the same files as validation images of `val_store` (data.val_root), also by
    links.

    Empty if these are all images: whoever gives one place for both wants to validate on the training images.
    """
    candidates = Candidates.of(val_store, options, (), Findings())
    folders = candidates.layout(False, Findings()).val or ("",)
    validated = [path for path in candidates.images if inside(path, folders)]
    images = [path for path in store.entries if is_image(path)]
    found = _same_files(store, images, val_store, validated)
    return found if len(found) < len(images) else []


def check_without(store: Store, names: Sequence[str]) -> None:
    """Raises UserError for a name in data.without that no folder has, or a pattern that no file matches."""
    folders = {posixpath.dirname(path) for path in store.entries}
    steps = {step for folder in folders for step in folder.split("/")}
    for name in names:
        if not any(matches(path, (name,)) for path in store.entries):
            kind = "file like" if "*" in name else "folder"
            raise UserError(f"data.without: {store.where} has no {kind} '{name}'.{did_you_mean(name, steps)}")


def _same_files(store: Store, images: Sequence[str], val_store: Store, validated: Sequence[str]) -> list[str]:
    if isinstance(store, FolderStore) and isinstance(val_store, FolderStore):
        files = {_identity(val_store, path) for path in validated} - {None}
        return [path for path in images if _identity(store, path) in files]
    if store.where != val_store.where:
        return []
    return [path for path in images if path in {*validated}]


def _identity(store: FolderStore, path: str) -> tuple[int, int] | None:
    """An identity that all names of one file share; None for a dead link."""
    try:
        status = (store.root / path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
