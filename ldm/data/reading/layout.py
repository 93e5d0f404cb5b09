"""Which folders hold training and validation images, by the names that people give them."""

import posixpath
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ldm.common.errors import UserError
from ldm.data.reading.sample import Seen

_PARTS = r"([-_ ]?(set|data|split|images|imgs|img))?[-_]?(\d{4})?"  # train_images, val2017
_TRAIN = re.compile(rf"(train|training|trn){_PARTS}", re.IGNORECASE)
_VALIDATION = [
    re.compile(f"({names}){_PARTS}", re.IGNORECASE)
    for names in ("val|valid|validation", "dev|eval", "test(ing)?[1-9]?")  # Kaggle's test1
]
_NO_CLASS = re.compile(rf"val(idation)?{_PARTS}", re.IGNORECASE)  # "valid" may be a class
# DIV2K_train_HR and DIV2K_valid_HR, cars_train and cars_test: the same words around them
_AROUND = r"(?P<before>(.*[-_ .])?)(?i:{})(?P<after>[A-Z]|([-_ .].*)?)"  # also trainA
_TRAIN_IN = re.compile(_AROUND.format("train|training|trn"))
_VALIDATION_IN = [re.compile(_AROUND.format(names)) for names in ("val|valid|validation", "dev|eval", "test(ing)?")]
_SMALL = re.compile(r"(.*[-_ .])?(LR|X\d|bicubic)([-_ .].*)?", re.IGNORECASE)  # DIV2K_train_LR_bicubic


class Meant(NamedTuple):
    """What the user says of the folders, None by default: whether they are classes, whether `10_name` are repeats, and
    which hold no images of the set."""

    classes: bool | None = None
    repeats: bool | None = None
    without: Sequence[str] = ()


Pair = tuple[str | None, list[str]]  # training's folder and those for validation


class Layout(NamedTuple):
    """The folders of the splits; "" is everything. What lies in `without` is of neither; what lies in `val` isn't of
    training, wherever it is."""

    train: tuple[str, ...] = ("",)
    val: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def trains(self, path: str) -> bool:
        return inside(path, self.train) and not inside(path, self.val) and not inside(path, self.without)

    def validates(self, path: str) -> bool:
        return inside(path, self.val)


def layout_of(images: Sequence[str], has_val_root: bool, seen: Seen, classes: bool | None = None) -> Layout:
    """Where training and validation images lie. Says which images are of neither.

    With `classes` only folders of the very names are splits. Raises UserError where several may be training's.
    """
    base = common_folder(images)
    tops = _tops(images, base)
    found = (
        _named(base, _pair(tops) if classes else _pair(tops) or _longer(tops), has_val_root)
        or _below_classes(images, base)
        or _beside(images, base, has_val_root)
        or _scattered(images)
    )
    if found is None:
        return Layout()
    chosen = found._replace(val=()) if has_val_root else found
    _leave_others(images, chosen, has_val_root, seen)
    return chosen


def inside(path: str, folders: Collection[str]) -> bool:
    """Whether a path lies in one of the folders, of which "" is everything."""
    if not folders or "" in folders:
        return bool(folders)
    if len(folders) < 4:
        return any(path.startswith(folder + "/") for folder in folders)
    return any(path[:i] in folders for i, letter in enumerate(path) if letter == "/")


def is_named(path: str, names: Collection[str]) -> bool:
    """Whether a path leads through a folder of one of these names, or lies in one of these paths; a name with * is a
    pattern of the file's name or path, in any case."""
    *steps, last = path.split("/")
    patterns = [name.lower() for name in names if "*" in name]
    if any(fnmatchcase(text.lower(), pattern) for pattern in patterns for text in (last, path)):
        return True
    return any(step in names or "/".join(steps[: i + 1]) in names for i, step in enumerate(steps))


def is_split(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_TRAIN, *_VALIDATION))


def split_rank(word: str) -> int | None:
    """0 for a word for training, 1 and up for validation's, the best first; None for another."""
    patterns = [_TRAIN, *_VALIDATION]
    return next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(word.strip())), None)


def common_folder(paths: Collection[str]) -> str:
    """The deepest folder that all of `paths` lie in."""
    return posixpath.commonpath({posixpath.dirname(path) for path in paths}) if paths else ""


def top(path: str, base: str) -> str | None:
    """The folder right below `base` that a path leads through; None for a file in `base`."""
    rest = path[len(base) + 1 if base else 0 :]
    return rest.split("/")[0] if "/" in rest else None


def join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _named(base: str, pair: Pair | None, has_val_root: bool) -> Layout | None:
    """Folders of both names in `base`; or of training's, where validation's are elsewhere."""
    train, vals = pair or (None, [])
    if not train or not (vals or has_val_root):
        return None
    return Layout((join(base, train),), tuple(join(base, val) for val in vals[:1]))


def _pair(names: Sequence[str]) -> Pair | None:
    """Training's name among these, and validation's, the best first; None where there is neither."""
    train = next((name for name in names if _TRAIN.fullmatch(name)), None)
    vals = [name for kind in _VALIDATION for name in names if kind.fullmatch(name)]
    return (train, vals) if train or vals else None


def _longer(names: Sequence[str]) -> Pair | None:
    """The same of names that hold these words: cars_train and cars_test."""
    trains = {_words(match): name for name in reversed(names) if (match := _TRAIN_IN.fullmatch(name))}
    for kind in _VALIDATION_IN:
        matches = [match for name in names if (match := kind.fullmatch(name)) and _words(match) in trains]
        matches = [match for match in matches if not _SMALL.fullmatch(match["after"])] or matches
        if len(matches) > 1:
            _refuse([trains[_words(match)] for match in matches[:2]])
        if matches:
            return trains[_words(matches[0])], [matches[0][0]]
    return None


def _refuse(trains: Sequence[str]) -> None:
    raise UserError(
        f"{' and '.join(f'{name}/' for name in trains)} are both named as training's images: sort them into train/ and "
        "val/ with a folder for each class, leave some out by data.without='[NAME]', or take them all for classes by "
        "data.classes=true."
    )


def _words(match: re.Match[str]) -> tuple[str, str]:
    return match["before"].lower(), match["after"].lower()


def _below_classes(images: Sequence[str], base: str) -> Layout | None:
    """cats/train, cats/val, dogs/train, dogs/val: every folder has its own part for training, one has for validation.

    Images right in the base or in one of the folders are of no split.
    """
    inner: dict[str, set[str]] = {}
    for path in images:
        if name := top(path, base):
            inner.setdefault(name, set()).add(top(path, join(base, name)) or "")
    pairs = {join(base, name): _pair(_by_length(names)) or (None, []) for name, names in inner.items()}
    if len(pairs) < 2 or not all(train for train, _ in pairs.values()) or not any(vals for _, vals in pairs.values()):
        return None
    return Layout(
        tuple(f"{name}/{train}" for name, (train, _) in pairs.items()),
        tuple(f"{name}/{vals[0]}" for name, (_, vals) in pairs.items() if vals),
    )


def _scattered(images: Sequence[str]) -> Layout | None:
    """a/train, a/val, and b without a split, or such pairs at other depths: their folders for validation are held out,
    all else is trained on."""
    inner: dict[str, set[str]] = {}
    for folder in {posixpath.dirname(path) for path in images}:
        while folder:
            folder, name = posixpath.split(folder)
            inner.setdefault(folder, set()).add(name)
    pairs = {folder: pair for folder, names in sorted(inner.items()) if (pair := _pair(_by_length(names)))}
    vals = {folder: found for folder, (train, found) in pairs.items() if train and found}
    held = tuple(join(folder, name) for folder, found in vals.items() for name in found)
    return Layout(("",), tuple(join(folder, found[0]) for folder, found in vals.items()), held) if held else None


def _beside(images: Sequence[str], base: str, has_val_root: bool) -> Layout | None:
    """Validation's folder beside what is trained on."""
    names = _tops(images, base)
    vals = [name for kind in _VALIDATION for name in names if kind.fullmatch(name)]
    found = [join(base, name) for name in vals if _is_part(images, base, name, vals, has_val_root)]
    return Layout((base,), tuple(found[:1]), tuple(found)) if found else None


def _is_part(images: Sequence[str], base: str, name: str, vals: Sequence[str], has_val_root: bool) -> bool:
    """Whether the folder `name` looks like a part of what is beside it: folders of the same names, or images beside
    images; beside class folders only by a name that is none of a class."""
    val = join(base, name)
    inner = {top(path, val) for path in images if inside(path, (val,))}
    outer = {top(path, base) for path in images if not inside(path, (val,))} - {*vals}
    if inner != {None}:
        return bool(outer) and inner <= outer
    if None in outer:
        return bool(_VALIDATION[0].fullmatch(name)) and not has_val_root
    return bool(_NO_CLASS.fullmatch(name)) and bool(outer)


def _leave_others(images: Sequence[str], chosen: Layout, has_val_root: bool, seen: Seen) -> None:
    """Says which images lie in neither split."""
    others = [path for path in images if not chosen.trains(path) and not chosen.validates(path)]
    folders = [folder for folder in (*chosen.train[:1], *chosen.val[:1]) if folder]
    more = " and so on" if len(chosen.train) > 1 else ""
    reason = f"beside {' and '.join(f'{folder}/' for folder in folders)}{more}" if folders else "of no split"
    seen.leave(others, reason + (", as data.val_root is given" if has_val_root else ""))


def _tops(images: Sequence[str], base: str) -> list[str]:
    return _by_length({name for path in images if (name := top(path, base))})


def _by_length(names: Collection[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))
