"""Which folders are classes, and which are merely how cameras, phones and tools store images."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from ldm.common.errors import UserError, did_you_mean
from ldm.data.folders.common_names import are_albums
from ldm.data.folders.layouts.tiles import are_tiles
from ldm.data.reading.findings import Findings, examples
from ldm.data.reading.paths import common_folder, ending, first_folder, inside, stem
from ldm.data.reading.split_folders import FIRST, LAST, PATH

CAMERA = re.compile(r"[1-9]\d\d(?=.*[A-Z_])[A-Z0-9_]{5}|\d{6}_[_a-z]")  # DCF's 100APPLE, 101CANON; iOS's 202401_a
_YEAR, _MONTH, _DAY, _SEP = r"(19|20)\d\d", r"(0?[1-9]|1[0-2])", r"(0?[1-9]|[12]\d|3[01])", r"[-_. ]"
DATE = re.compile(
    rf"({_YEAR}{_SEP}{_MONTH}({_SEP}{_DAY})?|{_YEAR}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"  # 2023-05, 20230512
    rf"|{_DAY}{_SEP}{_DAY}{_SEP}({_YEAR}|\d\d)|{_MONTH}{_SEP}{_YEAR}(?=$|{_SEP}))(\D.*)?"  # 12_05_2024, 5_2024
)
_FORMATS = {"jpeg": "jpg", "tiff": "tif"}
_FORMAT = re.compile(
    r"((images?|imgs?|photos?)[-_ ]?)?(jpe?g|png|tiff?|webp|gif|bmp|avif)s?([-_ ]?(images?|imgs?|files?))?", re.I
)
# Google Takeout's: Photos from 2023, Fotos von 2023, Photos de 2023; albums lie beside them
_TAKEOUT = re.compile(r"(photos|fotos|foto|foto's|zdjęcia)( (from|von|aus|de|del|uit|z)) (19|20)\d\d", re.IGNORECASE)
_YEARS, _MONTHS = re.compile(_YEAR), re.compile(rf"{_MONTH}(\D.*)?")
_PART = re.compile(r"(folds?|parts?|batch|chunk|shard)[-_ ]?\d+|(images?|imgs?|data)[-_ ]?\d+", re.IGNORECASE)
_SCALE = re.compile(r"[lhs]r|x\d", re.IGNORECASE)  # of one image in several sizes, for super-resolution
_SIZE = re.compile(
    r"(images?|imgs?|size|res)?[-_ ]?(\d{2,}x\d{2,}|64|128|256|512|768|1024|2048|4096)(px)?", re.IGNORECASE
)
_BUCKET, _HASH = re.compile(r"[0-9a-f]{1,4}", re.IGNORECASE), re.compile(r"[0-9a-f]{8,}")
_DCIM = "dcim"
_NONE = "none"
_SPREAD, _TILES = "into which a program has distributed files", "of tiles of maps and large images"
_READS = "data.classes=true reads them as such"
_LEVELS = (FIRST, LAST, PATH, _NONE)
_SHARD = re.compile(r"\d{5}")


def classes_of(
    paths: Sequence[str], wanted: bool | None, known: Collection[str], findings: Findings
) -> list[str | None]:
    """The class of each image: the first folder in which their paths differ. None where folders aren't classes, and for
    an image that lies in no such folder.

    `wanted` says whether folders are classes; by default they are unless they have names that cameras and tools give
    them. `known` are the training classes if these images are for validation. Raises UserError where classes are
    wanted and there are none.
    """
    base = common_folder(paths)
    steps = base.split("/") if base else []
    depth = next((i for i, step in enumerate(steps) if step in known), len(steps))
    names = [first_folder(path, "/".join(steps[:depth])) for path in paths]
    distinct = sorted({name for name in names if name is not None})
    if wanted and not known and (None in names or len(distinct) < 2):
        _refuse(paths, names)
    if wanted is False or len({*names}) < 2 and not known:
        return [None] * len(paths)
    if wanted or known:
        return names
    if kind := _storage_kind(paths, steps, distinct):
        is_spread = kind in (_SPREAD, _TILES)
        message = f"folders {kind} aren't classes: {examples(distinct)} ("
        message += "data.classes=none confirms it, data.classes=true reads them as such" if is_spread else _READS
        inner = {posixpath.basename(posixpath.dirname(path)) for path in paths} - {*distinct}
        is_nested = not is_spread and len(inner) > 1 and not any(map(is_storage_folder, inner))
        others = f", data.classes=last those inside, {examples(sorted(inner))}" if is_nested else ""
        findings.remark(f"{message}{others})")
        return [None] * len(paths)
    all_in_folders = bool(distinct) and None not in names
    if all_in_folders and all(map(_PART.fullmatch, distinct)):
        message = f"folders that are parts of one set aren't classes: {examples(distinct)}"
        findings.remark(f"{message} (data.classes=true reads them as such)")
        return _within(paths, base)
    if all_in_folders and all(map(_SIZE.fullmatch, distinct)):
        message = f"folders named by sizes are read as classes: {examples(distinct)}"
        findings.warn(f"{message} (data.classes=false: they aren't; data.without='[{distinct[0]}]' leaves one out)")
    return names


def nested_classes(
    paths: Sequence[str], level: str, known: Collection[str], findings: Findings, splits: Collection[str] = ()
) -> list[str | None]:
    """The class of each image in nested folders. With the level "last" it is the folder that holds the image (cat in
    animals/cat), with "path" all folders on the way (animals/cat).

    Folders named in `splits` aren't parts of it. `known` are the training classes if these images are for validation.
    Raises UserError where there are no classes.
    """
    folders = [_without_split(posixpath.dirname(path), splits) for path in paths]
    base = posixpath.commonpath(folders) if folders else ""
    if known:
        names: list[str | None] = [
            _known_part(folder, level, known) or _part(folder, base, level) for folder in folders
        ]
    else:
        names = [_part(folder, base, level) for folder in folders]
        if None in names or len({*names}) < 2:
            _refuse(paths, names)
    if level == LAST:
        _report_merged(folders, names, findings)
    return names


def level_of(classes: bool | str | None) -> tuple[bool | None, str]:
    """The option `classes` as whether folders are classes, None for automatic, and which of them. Raises UserError."""
    if classes not in (None, True, False):
        if classes not in _LEVELS:
            guess = did_you_mean(str(classes), _LEVELS)
            known = f"true, false, {', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}"
            raise UserError(f"data.classes={classes} is unknown.{guess} It can be {known}.")
        return classes != _NONE, FIRST if classes == _NONE else str(classes)
    return None if classes is None else bool(classes), FIRST


def is_storage_folder(name: str) -> bool:
    """Whether a folder within a class has a name that isn't a class: a date, a format, a size, a part."""
    patterns = (CAMERA, DATE, _FORMAT, _SIZE, _PART, _SCALE, _YEARS, _SHARD)
    return any(pattern.fullmatch(name) for pattern in patterns)


def report_inner_folders(paths: Sequence[str], splits: Sequence[str], findings: Findings) -> None:
    """Warns of folders with the same names inside several `splits` where the splits' own folders are the classes."""
    inner = [{first_folder(path, split) for path in paths if inside(path, (split,))} for split in splits]
    shared = inner[0] if inner else set()
    if len(splits) > 1 and len(shared) > 1 and None not in shared and all(names == shared for names in inner):
        within = examples(sorted(map(str, shared)))
        message = f"the classes are the folders that contain {examples(splits)}, not those inside ({within})"
        findings.warn(f"{message}: data.classes=last reads the latter")


def _part(folder: str, base: str, level: str) -> str | None:
    """The class of an image in `folder`; None for one right in `base`, the folder around all."""
    inner = folder[len(base) :].strip("/")
    return (posixpath.basename(inner) if level == LAST else inner) or None


def _known_part(folder: str, level: str, known: Collection[str]) -> str | None:
    """The longest end of the folder's path that is a class of training."""
    steps = folder.split("/")
    ends = [steps[-1]] if level == LAST else ["/".join(steps[i:]) for i in range(len(steps))]
    return next((end for end in ends if end in known), None)


def _without_split(folder: str, splits: Collection[str]) -> str:
    """The path without the split's folder: cats/train/small becomes cats/small, where cats/train is among the
    splits."""
    for split in splits:
        if split and f"{folder}/".startswith(f"{split}/"):
            return posixpath.join(posixpath.dirname(split), folder[len(split) + 1 :]).rstrip("/")
    return folder


def _report_merged(folders: Sequence[str], names: Sequence[str | None], findings: Findings) -> None:
    """Adds a remark that folders of the same name in several places are read as one class."""
    places: dict[str | None, set[str]] = defaultdict(set)
    for folder, name in zip(folders, names, strict=True):
        places[name].add(folder)
    if merged := [place for found in places.values() if len(found) > 1 for place in sorted(found)]:
        message = f"folders of the same name are one class: {examples(merged, 4)}"
        findings.remark(f"{message} (data.classes=path keeps them apart)")


def _within(paths: Sequence[str], base: str) -> list[str | None]:
    """The folder of each image one level further down; None for all unless each lies in one and not all in the same."""
    names = [first_folder(path, posixpath.join(base, str(first_folder(path, base)))) for path in paths]
    return names if None not in names and len({*names}) > 1 else [None] * len(paths)


def image_of(path: str) -> str:
    """A name for an image in any format and size: its path without its ending and without folders of formats and
    sizes."""
    folder, name = posixpath.split(stem(path))
    if not folder:
        return name
    kind = _format(ending(path)[1:])
    steps = [step for step in folder.split("/") if not _SCALE.fullmatch(step) and (not kind or _format(step) != kind)]
    return "/".join([*steps, name])


def _storage_kind(paths: Sequence[str], steps: Sequence[str], names: Sequence[str]) -> str | None:
    """What the folders `names` are, in words, if they aren't classes; `steps` lead to the folder that holds them."""
    above = {step.lower() for step in steps}
    if names and all(map(CAMERA.fullmatch, names)) or _DCIM in above | {name.lower() for name in names}:
        return "named as cameras and phones name folders"
    if are_albums(names):
        return "named as phones and computers name folders"
    if names and (all(map(DATE.fullmatch, names)) or _are_years(paths, "/".join(steps), names)):
        return "named by dates"
    if any(map(_TAKEOUT.fullmatch, names)):
        return "named as Google Takeout names folders"
    if names and all(map(_format, names)) and len({image_of(path) for path in paths}) < len(paths):
        return "for formats of the same images"
    if names and all(map(_SHARD.fullmatch, names)) and all(map(_is_in_shard, paths)):
        return "numbered as img2dataset numbers folders"
    if names and all(map(str.isdecimal, names)) and all(map(_is_in_thousand, paths)):
        return "of a thousand numbered images each"
    if len(names) > 1 and _are_buckets(paths, "/".join(steps)):
        return _SPREAD
    if len(names) > 1 and (are_tiles(paths) or _are_nested_hex(paths, "/".join(steps))):
        return _TILES if are_tiles(paths) else _SPREAD
    return None


def _are_years(paths: Sequence[str], base: str, names: Sequence[str]) -> bool:
    """Whether folders are years with dates or months inside, 2023/2023-05-12 or 2023/05; a single year counts too."""
    if _YEARS.fullmatch(posixpath.basename(base)):
        return all(map(_MONTHS.fullmatch, names))
    inner = {first_folder(path, posixpath.join(base, str(first_folder(path, base)))) or "" for path in paths}
    return all(map(_YEARS.fullmatch, names)) and all(DATE.fullmatch(name) or _MONTHS.fullmatch(name) for name in inner)


def _format(name: str) -> str | None:
    match = _FORMAT.fullmatch(name)
    return match and _FORMATS.get(match[3].lower(), match[3].lower())


def _is_in_shard(path: str) -> bool:
    """Whether a file's name begins with its shard's, as in 00012/000120034.jpg."""
    folder, name = posixpath.split(stem(path))
    return name.isdecimal() and name.startswith(posixpath.basename(folder)) and len(name) > 5


def _is_in_thousand(path: str) -> bool:
    """Whether a file lies in the folder of its thousand, as in FFHQ: 01000/01023.png."""
    folder, name = posixpath.split(stem(path))
    above = posixpath.basename(folder)
    return name.isdecimal() and above.isdecimal() and len(above) > 3 and int(name) // 1000 * 1000 == int(above)


def _are_buckets(paths: Sequence[str], base: str) -> bool:
    """Whether folders spread files evenly: by a hash (3f/3fa85f64.jpg), or as in Danbooru by the last digits
    (0567/1234567.jpg)."""
    pairs = [(first_folder(path, base) or "", _letters(path)) for path in paths]
    if all(_HASH.fullmatch(name) and _BUCKET.fullmatch(folder) for folder, name in pairs):
        has_letters = any(not name.isdecimal() for _, name in pairs)
        return has_letters and all(name.startswith(folder.lower()) for folder, name in pairs)
    return all(
        len(folder) in (3, 4) and folder.isdecimal() and name.isdecimal() and int(name) % 1000 == int(folder)
        for folder, name in pairs
    ) and any(len(name) > 4 for _, name in pairs)  # fmt: skip


def _are_nested_hex(paths: Sequence[str], base: str) -> bool:
    """Whether all files lie in two or more nested folders named by digits of a hash, as in 3f/a8/5f/holiday.jpg."""
    folders = [posixpath.dirname(path)[len(base) :].strip("/").split("/") for path in paths]
    shapes = {tuple(map(len, steps)) for steps in folders}
    if len(shapes) > 1 or not all(len(steps) > 1 and all(map(_BUCKET.fullmatch, steps)) for steps in folders):
        return False
    names = {step.lower() for steps in folders for step in steps}
    has_mixed = any(not name.isalpha() and not name.isdecimal() for name in names)
    return {len(name) for name in names} <= {1, 2, 3} and has_mixed


def _letters(path: str) -> str:
    """The file's name without its ending and hyphens, in lower case."""
    return stem(posixpath.basename(path)).lower().replace("-", "")


def _refuse(paths: Sequence[str], names: Sequence[str | None]) -> None:
    stray = next((path for path, name in zip(paths, names, strict=True) if name is None), None)
    if stray and any(names):
        raise UserError(
            f"data.classes=true, but {stray} isn't in a class's folder: move it into one, or out of the data."
        )
    raise UserError("data.classes=true, but the images lie in one folder: give each class a folder of its own.")
