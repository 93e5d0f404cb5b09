"""What a folder or a .zip of images holds: samples with their captions, labels, maps, masks and controls."""

import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from ldm.data.folders.classes import classes_of, is_laid_away
from ldm.data.folders.repeats import repeat_described, repeats_of
from ldm.data.folders.usual import tell_classes, tell_named
from ldm.data.reading.beside import ending, is_image, stem
from ldm.data.reading.caption_files import JSON, find_captions, unread_captions
from ldm.data.reading.layout import Meant
from ldm.data.reading.metadata_files import described
from ldm.data.reading.sample import COLUMNS, PATHS, Sample, Seen, plural, some
from ldm.data.reading.store import FolderStore, Store, ZipStore, open_store

__all__ = ["COLUMNS", "PATHS", "FolderStore", "Sample", "Store", "ZipStore", "open_store", "samples"]
_LOOKED_AT = 1000  # names of files
_PROSE = 4  # words of a file's name that make it look like a caption


def samples(
    store: Store,
    under: str,
    columns: Mapping[str, str],
    seen: Seen | None = None,
    *,
    known: Collection[str] = (),
    meant: Meant = Meant(),  # noqa: B008  immutable
    left: Mapping[str, str] | None = None,
    keep: Callable[[str], bool] = lambda path: True,
) -> list[Sample]:
    """The samples inside the folder `under` of the store that `keep` takes by their paths, in the order of their paths
    or their metadata.

    `columns` says which of COLUMNS are wanted and what the metadata call them; `known` are training's classes, when
    these are to be validated on; `meant` is what the user says of the folders. `left` are images that are no samples,
    with the reason, unless metadata name them.
    """
    seen = Seen() if seen is None else seen
    paths = [path for path in store.under(under) if keep(path)]
    found = described(store, under, columns, seen, keep)
    if found:
        _leave_unnamed(found, paths, seen)
        found = repeat_described(found, meant.repeats, seen)
        if "text" in columns:
            find_captions([sample for sample in found if not sample.text], store, seen, columns["text"])
            unread_captions([sample for sample in found if sample.text], store, seen)
        if "label" in columns and all(sample.label is None for sample in found):
            _classes_beside(found, columns, meant.classes, known, seen)
    else:
        found = _from_files(store, paths, columns, known, meant, left or {}, seen)
    _drop_empty(found, seen)
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
    meant: Meant,
    left: Mapping[str, str],
    seen: Seen,
) -> list[Sample]:
    seen.left_out |= {path: left[path] for path in paths if path in left}
    images = [path for path in paths if is_image(path) and path not in left]
    counted = {} if meant.classes else repeats_of(images, meant.repeats, known, seen)
    found = [Sample(path) for path in images if path in counted or not counted]
    if "text" in columns:
        find_captions(found, store, seen, columns["text"])
    _tell_renamed(found, columns, seen)
    for sample in found:
        if counted:
            sample.repeats, name = counted[sample.image]
            _name(sample, name, columns)
    if "label" in columns and not counted:
        _classify(found, meant.classes, known, seen)
    if "text" in columns and all(row.text is row.caption is row.label is None for row in found):
        _tell_names(found, seen)
    if "label" in columns and all(row.text is row.caption is row.label is None for row in found):
        tell_named([row.image for row in found], seen)
    # what img2dataset counts of each of its folders, and a table of what is in the images' own files
    folders = {sample.image.rpartition("/")[0] for sample in found}
    own = {folder + more for folder in folders for more in ("_stats.json", ".parquet")}
    seen.pass_over([path for path in own if path in store.entries], "img2dataset's account of a folder")
    return found


def _tell_renamed(found: Sequence[Sample], columns: Mapping[str, str], seen: Seen) -> None:
    """Notes columns that the user gives other names, where there are no metadata and no NAME.json to have them."""
    has_json = any(ending(sample.caption or "") == JSON for sample in found)
    names = [name for key, name in columns.items() if name != key and not (key == "text" and has_json)]
    if found and names:
        said = f"data.columns names {some(names)}, which nothing has: there is no metadata.jsonl or metadata.csv"
        seen.note(f"{said}, and no NAME.json with it")


def _classes_beside(
    found: Sequence[Sample], columns: Mapping[str, str], meant: bool | None, known: Collection[str], seen: Seen
) -> None:
    """Folders are classes beside metadata without labels if that is asked for, or labels alone are; else it is said
    that they might."""
    if meant or "text" not in columns:
        _classify(found, meant, known, seen)
        return
    names = classes_of([sample.image for sample in found], meant, known, Seen())
    distinct = sorted({name for name in names if name is not None})
    if None not in names and 1 < len(distinct) <= len(found) // 2:
        said = f"the folders {some(distinct)} aren't read as classes, as the metadata have no labels"
        seen.aside(f"{said}: data.classes=true reads them")


def _drop_empty(found: Sequence[Sample], seen: Seen) -> None:
    """Captions of nothing, and no others, are none."""
    if any(sample.text == "" for sample in found) and not any(sample.text or sample.caption for sample in found):
        seen.note("every caption is empty: they aren't taken for captions")
        for sample in found:
            sample.text = None


def _tell_names(found: Sequence[Sample], seen: Seen) -> None:
    """Notes that the files' names may be captions, as Midjourney has them: four words or more, and mostly others."""
    some_of = found[:: -(-len(found) // _LOOKED_AT) or 1]
    names = [stem(posixpath.basename(sample.image)) for sample in some_of]
    words = {tuple(of) for name in names if len(of := re.findall(r"[^\W\d_]+", name)) >= _PROSE}
    if 2 * len(words) > len(names):
        said = f"the files' names look like captions ({names[0]}) and aren't read"
        seen.note(f"{said}: write them to metadata.csv, with the columns file_name and text")


def _classify(found: Sequence[Sample], meant: bool | None, known: Collection[str], seen: Seen) -> None:
    """Labels by the folders, where every image lies in one."""
    classes = classes_of([sample.image for sample in found], meant, known, seen)
    strays = [sample.image for sample, name in zip(found, classes, strict=True) if name is None]
    if not strays:
        for sample, name in zip(found, classes, strict=True):
            sample.label = name
        if not meant and not known and found:
            tell_classes([sample.image for sample in found], [str(name) for name in classes], is_laid_away, seen)
    elif len(strays) < len(found):
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
