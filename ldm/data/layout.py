"""Which folders hold training and validation, which classes, and which repeats, by the names that people give them."""

import posixpath
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ldm.data.beside import is_image, is_junk
from ldm.data.sample import Seen, some

_PARTS = r"([-_ ]?(set|data|split|images|imgs|img))?[-_]?(\d{4})?"  # train_images, val2017
_TRAIN = re.compile(rf"(train|training|trn){_PARTS}", re.IGNORECASE)
_VALIDATION = [
    re.compile(f"({names}){_PARTS}", re.IGNORECASE) for names in ("val|valid|validation", "dev|eval", "test(ing)?")
]
_CAMERA = re.compile(r"[1-9]\d\d[A-Z0-9_]{5}")  # DCF's names of folders: 100APPLE, 101CANON
_REPEATS = re.compile(r"(?P<repeats>\d{1,3})_(?P<name>.+)")  # kohya's
_REGULAR = re.compile(r"reg(ulari[sz]ation)?([-_ ]?(images|imgs|img|data))?", re.IGNORECASE)


class Layout(NamedTuple):
    """The folders of the splits; "" is everything. `without` lies inside `train` and isn't of it."""

    train: str
    val: str | None = None
    without: str | None = None


def layout_of(paths: Collection[str], has_val_root: bool, seen: Seen) -> Layout:
    """Where training and validation images lie."""
    images = [path for path in paths if is_image(path) and not is_junk(path)]
    base = common_folder(images)
    tops = sorted({top for path in images if (top := _top(path, base))}, key=lambda name: (len(name), name))
    train = next((top for top in tops if _TRAIN.fullmatch(top)), None)
    vals = [top for kind in _VALIDATION for top in tops if kind.fullmatch(top)]
    if train and (vals or has_val_root):
        val = None if has_val_root else vals[0]
        chosen = Layout(_join(base, train), val and _join(base, val))
        _leave_others(images, chosen, has_val_root, seen)
        return chosen
    if vals and not train and not has_val_root and _VALIDATION[0].fullmatch(vals[0]):
        val = _join(base, vals[0])
        if _is_beside(images, base, val):
            return Layout(base, val, val)
    return Layout("")


def inside(path: str, folder: str | None) -> bool:
    return folder is not None and (not folder or path.startswith(folder + "/"))


def common_folder(paths: Collection[str]) -> str:
    """The deepest folder that all of `paths` lie in."""
    return posixpath.commonpath({posixpath.dirname(path) for path in paths}) if paths else ""


def classes_of(paths: Sequence[str], known: Collection[str], seen: Seen) -> list[str | None]:
    """The class of each image: the first folder in which they differ. None where folders are no classes, and for an
    image that lies beside them.

    `known` are training's classes, where these images are to be validated on.
    """
    base = common_folder(paths)
    steps = base.split("/") if base else []
    depth = next((i for i, step in enumerate(steps) if step in known), len(steps))
    names = [_top(path, "/".join(steps[:depth])) for path in paths]
    distinct = sorted({name for name in names if name is not None})
    if len({*names}) < 2 and not known:
        return [None] * len(paths)
    if distinct and all(map(_CAMERA.fullmatch, distinct)):
        seen.aside(f"folders as cameras name them are no classes: {some(distinct)}")
        return [None] * len(paths)
    return names


def repeats_of(paths: Sequence[str], wanted: bool | None, seen: Seen) -> dict[str, tuple[int, str]]:
    """By image how often an epoch visits it, and its name, where all lie in folders as kohya's tools name them:
    `10_name`. Empty otherwise.

    Images under `reg/`, which kohya's tools mix in as what the class looked like before, aren't among them. Numbers
    from 0 or 1 on, each once, number classes, unless `wanted`.
    """
    found = {path: match for path in paths if (match := _numbered(path))}
    kept = {path: match for path, match in found.items() if not any(map(_REGULAR.fullmatch, path.split("/")[:-1]))}
    if wanted is False or not kept or len(found) < len(paths):
        return {}
    numbers = {match[0]: int(match["repeats"]) for match in kept.values()}
    if 0 in numbers.values():
        return {}
    if not wanted and len(numbers) > 1 and sorted(numbers.values()) == list(range(1, len(numbers) + 1)):
        seen.aside(f"{some(sorted(numbers))} are taken for numbered classes; data.repeats=true: for repeats")
        return {}
    said = ", ".join(f"{name} {number} times" for name, number in list(numbers.items())[:4])
    seen.aside(f"repeats as kohya's tools count them: an epoch visits {said}{' ...' if len(numbers) > 4 else ''}")
    if left := [path for path in found if path not in kept]:
        seen.leave(left, "kohya's images for regularisation (prior_path= makes the model's own)")
    return {path: (int(match["repeats"]), match["name"].strip()) for path, match in kept.items()}


def _numbered(path: str) -> re.Match[str] | None:
    steps = [step for step in path.split("/")[:-1] if not _CAMERA.fullmatch(step)]
    return next((match for step in steps if (match := _REPEATS.fullmatch(step))), None)


def _leave_others(images: Sequence[str], chosen: Layout, has_val_root: bool, seen: Seen) -> None:
    """Says which images lie in neither split."""
    others = [path for path in images if not inside(path, chosen.train) and not inside(path, chosen.val)]
    names = " and ".join(f"{folder}/" for folder in (chosen.train, chosen.val) if folder)
    reason = f"beside {names}" + (", as data.val_root is given" if has_val_root else "")
    seen.leave(others, reason)


def _is_beside(images: Sequence[str], base: str, val: str) -> bool:
    """Whether `val` looks like a part of what is beside it: images beside images, or folders of the same names."""
    inner = {_top(path, val) for path in images if inside(path, val)}
    outer = {_top(path, base) for path in images if not inside(path, val)}
    return bool(inner) and inner <= outer


def _top(path: str, base: str) -> str | None:
    """The folder right below `base` that a path leads through; None for a file in `base`."""
    rest = path[len(base) + 1 if base else 0 :]
    return rest.split("/")[0] if "/" in rest else None


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name
