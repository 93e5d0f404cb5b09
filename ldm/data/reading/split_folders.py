"""Which folders hold training and validation images, by the names that people commonly give them."""

import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings
from ldm.data.reading.paths import common_folder, first_folder, inside, join

# train_images, val2017, and Places' val_256
_PARTS = r"([-_ ]?(set|data|split|images|imgs|img))?[-_]?(\d{4}|64|128|256|512|768)?"
_TRAIN = re.compile(rf"(train|training|trn){_PARTS}", re.IGNORECASE)
_VALIDATION = [
    re.compile(f"({names}){_PARTS}", re.IGNORECASE)
    for names in (
        "val|valid|validate|validation",
        "dev|eval",
        "test(ing)?[1-9]?",  # Kaggle's test1
        "evaluation|h[eo]ld[-_ ]?out",
    )
]
_NEVER_CLASS = re.compile(rf"val(idation|idate)?{_PARTS}", re.IGNORECASE)  # "valid" may be a class
# DIV2K_train_HR and DIV2K_valid_HR, cars_train and cars_test: the same words around them
_AROUND = r"(?P<before>(.*[-_ .])?)(?i:{})(?P<after>[A-Z]|([-_ .].*)?)"  # also trainA
_TRAIN_IN = re.compile(_AROUND.format("train|training|trn"))
_VALIDATION_IN = [re.compile(_AROUND.format(names)) for names in ("val|valid|validation", "dev|eval", "test(ing)?")]
_SMALL = re.compile(r"(.*[-_ .])?(LR|X\d|bicubic)([-_ .].*)?", re.IGNORECASE)  # DIV2K_train_LR_bicubic


FIRST, LAST, PATH = "first", "last", "path"  # which of the folders around an image is its class
NO_PAIRS: Mapping[str, str] = {}


class FolderOptions(NamedTuple):
    """What the user says about the folders: whether they are classes, whether `10_name` are repeats (None for
    automatic), the names of folders and patterns of files that are left out, which folder is the class, and where the
    files of columns lie (`pairs`)."""

    classes: bool | None = None
    repeats: bool | None = None
    without: Sequence[str] = ()
    level: str = FIRST
    pairs: Mapping[str, str] = NO_PAIRS


SplitNames = tuple[str | None, list[str]]  # the training folder and the folders for validation


class Layout(NamedTuple):
    """The folders of the splits, "" for everything.

    Images in `without` are in neither split. Images in `val` are never trained on, whatever folder of `train` they lie
    in.
    """

    train: tuple[str, ...] = ("",)
    val: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def trains(self, path: str) -> bool:
        """Whether an image is for training."""
        return inside(path, self.train) and not inside(path, self.val) and not inside(path, self.without)

    def validates(self, path: str) -> bool:
        """Whether an image is for validation."""
        return inside(path, self.val)


def layout_of(images: Sequence[str], has_val_root: bool, findings: Findings, classes: bool | None = None) -> Layout:
    """Where training and validation images lie. Images in neither split are added to `findings`.

    With `classes`, names that merely contain a word such as train aren't splits. Raises UserError where several folders
    may be the training folder.
    """
    base = common_folder(images)
    names = _first_folders(images, base)
    splits = _split_names(names)
    if splits is None and not classes:
        splits = _longer_split_names(names)
    found = (
        _in_base(base, splits, has_val_root)
        or _below_classes(images, base)
        or _validation_beside(images, base, has_val_root)
        or _scattered(images)
    )
    if found is None:
        return Layout()
    chosen = found._replace(val=()) if has_val_root else found
    _leave_out_others(images, chosen, has_val_root, findings)
    return chosen


def matches(path: str, names: Collection[str]) -> bool:
    """Whether a path lies in a folder with one of these names or paths. A name with * is a pattern for the file's name
    or path, regardless of case."""
    *steps, last = path.split("/")
    patterns = [name.lower() for name in names if "*" in name]
    if any(fnmatchcase(text.lower(), pattern) for pattern in patterns for text in (last, path)):
        return True
    return any(step in names or "/".join(steps[: i + 1]) in names for i, step in enumerate(steps))


def is_split(name: str) -> bool:
    """Whether a folder has the name of a split."""
    return any(pattern.fullmatch(name) for pattern in (_TRAIN, *_VALIDATION))


def is_training(name: str) -> bool:
    """Whether a folder is named as the one for training."""
    return _TRAIN.fullmatch(name) is not None


def split_rank(word: str) -> int | None:
    """0 for a word for training, 1 and up for words for validation, in order of preference; None for other words."""
    patterns = [_TRAIN, *_VALIDATION]
    return next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(word.strip())), None)


def _in_base(base: str, splits: SplitNames | None, has_val_root: bool) -> Layout | None:
    """Folders for both splits in `base`, or only for training if validation images are elsewhere."""
    train, vals = splits or (None, [])
    if not train or not (vals or has_val_root):
        return None
    return Layout((join(base, train),), tuple(join(base, val) for val in vals[:1]))


def _split_names(names: Sequence[str]) -> SplitNames | None:
    """The names for training and for validation among these, the preferred one first; None if there are none."""
    train = next((name for name in names if _TRAIN.fullmatch(name)), None)
    vals = [name for kind in _VALIDATION for name in names if kind.fullmatch(name)]
    return (train, vals) if train or vals else None


def _longer_split_names(names: Sequence[str]) -> SplitNames | None:
    """As `_split_names`, for names that contain such words: cars_train and cars_test."""
    trains = {_words_around(match): name for name in reversed(names) if (match := _TRAIN_IN.fullmatch(name))}
    for kind in _VALIDATION_IN:
        matches = [match for name in names if (match := kind.fullmatch(name)) and _words_around(match) in trains]
        matches = [match for match in matches if not _SMALL.fullmatch(match["after"])] or matches
        if len(matches) > 1:
            _refuse([trains[_words_around(match)] for match in matches[:2]])
        if matches:
            return trains[_words_around(matches[0])], [matches[0][0]]
    return None


def _refuse(trains: Sequence[str]) -> None:
    raise UserError(
        f"{' and '.join(f'{name}/' for name in trains)} both have names of training sets: sort them into train/ "
        "and val/ with a folder for each class, leave some out with data.without='[NAME]', or read them all as classes "
        "with data.classes=true."
    )


def _words_around(match: re.Match[str]) -> tuple[str, str]:
    return match["before"].lower(), match["after"].lower()


def _below_classes(images: Sequence[str], base: str) -> Layout | None:
    """The splits inside folders of classes, cats/train, cats/val, dogs/train, dogs/val: every folder has a part for
    training, and at least one has a part for validation.

    Images right in `base` or right in one of the folders are in neither split.
    """
    inner: dict[str, set[str]] = {}
    for path in images:
        if name := first_folder(path, base):
            inner.setdefault(name, set()).add(first_folder(path, join(base, name)) or "")
    splits = {join(base, name): _split_names(_by_length(names)) or (None, []) for name, names in inner.items()}
    all_train = all(train for train, _ in splits.values())
    some_validate = any(vals for _, vals in splits.values())
    if len(splits) < 2 or not all_train or not some_validate:
        return None
    return Layout(
        train=tuple(f"{name}/{train}" for name, (train, _) in splits.items()),
        val=tuple(f"{name}/{vals[0]}" for name, (_, vals) in splits.items() if vals),
    )


def _scattered(images: Sequence[str]) -> Layout | None:
    """The splits where only some folders have one (a/train, a/val, and b without a split), or have them at several
    depths: folders for validation are held out, and all else is trained on."""
    inner: dict[str, set[str]] = {}
    for folder in {posixpath.dirname(path) for path in images}:
        while folder:
            folder, name = posixpath.split(folder)
            inner.setdefault(folder, set()).add(name)
    vals: dict[str, list[str]] = {}
    for folder, names in sorted(inner.items()):
        train, found = _split_names(_by_length(names)) or (None, [])
        if train and found:
            vals[folder] = found
    if not vals:
        return None
    return Layout(
        train=("",),
        val=tuple(join(folder, found[0]) for folder, found in vals.items()),
        without=tuple(join(folder, name) for folder, found in vals.items() for name in found),
    )


def _validation_beside(images: Sequence[str], base: str, has_val_root: bool) -> Layout | None:
    """A folder for validation beside the images that are trained on."""
    names = _first_folders(images, base)
    vals = [name for kind in _VALIDATION for name in names if kind.fullmatch(name)]
    found = [
        join(base, name) for name in vals if _is_split_of(images, base, name, vals=vals, has_val_root=has_val_root)
    ]
    return Layout(train=(base,), val=tuple(found[:1]), without=tuple(found)) if found else None


def _is_split_of(images: Sequence[str], base: str, name: str, *, vals: Sequence[str], has_val_root: bool) -> bool:
    """Whether the folder `name` looks like a split of what lies beside it: folders of the same names, or images beside
    images. Beside class folders, only names that can't be classes count."""
    val = join(base, name)
    inner = {first_folder(path, val) for path in images if inside(path, (val,))}
    outer = {first_folder(path, base) for path in images if not inside(path, (val,))} - {*vals}
    if inner != {None}:
        return bool(outer) and inner <= outer
    if None in outer:
        return bool(_VALIDATION[0].fullmatch(name)) and not has_val_root
    return bool(_NEVER_CLASS.fullmatch(name)) and bool(outer)


def _leave_out_others(images: Sequence[str], chosen: Layout, has_val_root: bool, findings: Findings) -> None:
    """Records the images that are in neither split."""
    others = [path for path in images if not chosen.trains(path) and not chosen.validates(path)]
    folders = [f"{folder}/" for folder in (*chosen.train[:1], *chosen.val[:1]) if folder]
    reason = "in neither split"
    if folders:
        reason = f"beside {' and '.join(folders)}"
        if len(chosen.train) > 1:
            reason += " and so on"
    if has_val_root:
        reason += ", as data.val_root is given"
    findings.leave_out(others, reason)


def _first_folders(images: Sequence[str], base: str) -> list[str]:
    return _by_length({name for path in images if (name := first_folder(path, base))})


def _by_length(names: Collection[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))
