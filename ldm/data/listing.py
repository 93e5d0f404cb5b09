"""What a folder or a .zip of images holds: samples with their captions, labels, maps, masks and controls."""

from collections.abc import Collection, Mapping, Sequence

from ldm.data.beside import find_captions, is_image, own_images
from ldm.data.layout import classes_of, inside, repeats_of
from ldm.data.metadata import described
from ldm.data.sample import COLUMNS, PATHS, Sample, Seen, plural, some
from ldm.data.store import FolderStore, Store, ZipStore, open_store

__all__ = ["COLUMNS", "PATHS", "FolderStore", "Sample", "Store", "ZipStore", "open_store", "samples"]


def samples(
    store: Store,
    under: str,
    columns: Mapping[str, str],
    seen: Seen | None = None,
    *,
    without: str | None = None,
    known: Collection[str] = (),
    repeats: bool | None = None,
) -> list[Sample]:
    """The samples inside the folder `under` of the store, in the order of their paths or their metadata, but for those
    inside `without`.

    `columns` says which of COLUMNS are wanted and what the metadata call them; `known` are training's classes, when
    these are to be validated on; `repeats` says whether folders `10_name` are repeats, by default if they look like it.
    """
    seen = Seen() if seen is None else seen
    paths = [path for path in store.under(under) if not inside(path, without)]
    found = [sample for sample in described(store, under, columns, seen) if not inside(sample.image, without)]
    if found:
        _leave_unnamed(found, paths, seen)
        if "text" in columns and all(sample.text is None for sample in found):
            find_captions(found, store.entries, seen)
    else:
        found = _from_files(store, paths, columns, known, repeats, seen)
    seen.read |= {path for sample in found for path in (sample.caption, *(getattr(sample, key) for key in PATHS))}
    for key in [key for key in PATHS if key not in columns]:
        for sample in found:
            setattr(sample, key, None)
    return found


def _from_files(
    store: Store,
    paths: Sequence[str],
    columns: Mapping[str, str],
    known: Collection[str],
    repeats: bool | None,
    seen: Seen,
) -> list[Sample]:
    images = own_images(paths, seen)
    counted = repeats_of(images, repeats, seen)
    found = [Sample(path) for path in images if path in counted or not counted]
    if "text" in columns:
        find_captions(found, store.entries, seen)
    for sample in found:
        if counted:
            sample.repeats, name = counted[sample.image]
            _name(sample, name, columns)
    if "label" in columns and not counted:
        _classify(found, known, seen)
    return found


def _classify(found: Sequence[Sample], known: Collection[str], seen: Seen) -> None:
    """Labels by the folders, where every image lies in one."""
    classes = classes_of([sample.image for sample in found], known, seen)
    strays = [sample.image for sample, name in zip(found, classes, strict=True) if name is None]
    if not strays:
        for sample, name in zip(found, classes, strict=True):
            sample.label = name
    elif len(strays) < len(found) and not any(sample.caption for sample in found):
        folders = some(sorted({name for name in classes if name is not None}))
        said = f"no classes are taken from the folders {folders}, as not every image lies in one"
        seen.note(f"{said} ({plural(len(strays), 'image')}, such as {strays[0]}): move these into folders, or away")


def _name(sample: Sample, name: str, columns: Mapping[str, str]) -> None:
    """The folder's name is the caption of an image that has none; where captions aren't wanted, its class."""
    if "text" in columns:
        sample.text = name
    elif "label" in columns:
        sample.label = name


def _leave_unnamed(found: Sequence[Sample], paths: Sequence[str], seen: Seen) -> None:
    named = {path for sample in found for path in (sample.image, sample.map, sample.mask, sample.control)}
    seen.leave([path for path in paths if is_image(path) and path not in named], "not in the metadata")
