"""Folders named as kohya's tools expect, `10_name`: an epoch visits their images 10 times."""

import re
from collections.abc import Collection, Mapping, Sequence

from ldm.common.errors import UserError, did_you_mean
from ldm.data.folders.classes import CAMERA, DATE, is_storage_folder
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import common_folder, first_folder
from ldm.data.reading.sample import Sample

_REPEATS = re.compile(r"(?P<repeats>\d{1,3})_(?P<name>.+)")
_REGULARISATION = re.compile(r"reg(ulari[sz]ation)?([-_ ]?(images|imgs|img|data))?", re.IGNORECASE)
_WRITTEN = re.compile(r"(models?|samples?|logs?|outputs?)", re.IGNORECASE)  # what training writes beside `img`
_OPTION = "data.repeats=true reads them as repeats"
_NEVER = "in a folder of 0 repeats"
Repeats = dict[str, tuple[int, str]]


def repeats_of(paths: Sequence[str], wanted: bool | None, known: Collection[str], findings: Findings) -> Repeats:
    """How often an epoch visits each image, and the name of its folder, if all images lie in folders `10_name`. Empty
    otherwise.

    Images under `reg/`, which kohya's tools mix in as examples of the class, aren't considered, nor are those that
    training wrote to `model/`, `sample/` and `log/`. Folders whose numbers count up from 0 or 1 are numbered classes,
    as are folders that are `known` as training classes. If repeats are `wanted`, images in other folders or in `0_name`
    are left out, as these tools do.
    """
    found = {path: match for path in paths if (match := _numbered(path, wanted))}
    kept = {path: match for path, match in found.items() if not _is_regularisation(path)}
    if wanted is False or not kept or {match[0] for match in kept.values()} & {*known}:
        return {}
    excluded = _excluded(paths, found)
    strays = [path for path in paths if path not in found and path not in excluded]
    numbers = {match[0]: int(match["repeats"]) for match in kept.values()}
    if not wanted and (doubt := _doubt(numbers, strays, _inner_folders(kept))):
        findings.remark(doubt)
        return {}
    findings.leave_out(strays, "outside of folders named NUMBER_name, which data.repeats=true reads")
    findings.leave_out([path for path, match in kept.items() if not int(match["repeats"])], _NEVER)
    findings.left_out |= excluded
    visits = ", ".join(f"{name} {number} times" for name, number in list(numbers.items())[:4] if number)
    more = " ..." if len(numbers) > 4 else ""
    findings.remark(f"repeats as in kohya's tools: an epoch visits {visits}{more}")
    counted = {path: (int(match["repeats"]), match["name"].strip()) for path, match in kept.items()}
    return {path: value for path, value in counted.items() if value[0]}


def check_option(repeats: bool | Mapping[str, int] | None, classes: bool | str | None) -> None:
    """Raises UserError if names of folders are to be both classes and numbers of repeats."""
    if classes and repeats is True:
        raise UserError(
            f"data.classes={str(classes).lower()} and data.repeats=true: folders can be classes or repeats, "
            "not both; choose one."
        )


def check_repeats(samples: Sequence[Sample]) -> None:
    """Raises UserError if repeats are wanted and no sample lies in a folder `10_name`."""
    if not any(_numbered(sample.image, True) for sample in samples):
        raise UserError(
            "data.repeats=true, but no folder of images is named NUMBER_name, such as 10_dog: name them so."
        )


def set_repeats(samples: Sequence[Sample], numbers: Mapping[str, int], findings: Findings) -> None:
    """Gives samples the `numbers` of their folders, by name or path in the root; the innermost folder decides, and
    samples in other folders keep theirs.

    Raises UserError for numbers below 1, and for folders without a sample.
    """
    given = {name.strip("/"): number for name, number in numbers.items()}
    if wrong := [f"{name}: {number}" for name, number in given.items() if number < 1]:
        raise UserError(f"data.repeats={{{wrong[0]}}}: has to be at least 1; data.without=[NAME] leaves out a folder.")
    counts = dict.fromkeys(given, 0)
    for sample in samples:
        if name := _innermost(sample.image, given):
            sample.repeats = given[name]
            counts[name] += 1
    if unused := [name for name, count in counts.items() if not count]:
        around = {name for sample in samples for name in _folders(sample.image)}
        raise UserError(
            f"data.repeats: no training image lies in a folder '{unused[0]}'.{did_you_mean(unused[0], around)}"
        )
    each = ", ".join(f"{plural(counts[name], 'image')} of {name} {number} times" for name, number in given.items())
    findings.remark(f"repeats: an epoch visits {each}")


def _innermost(path: str, given: Collection[str]) -> str | None:
    """Of the folders in `given`, names or paths, the innermost one around a file."""
    parts = path.split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        for name in ("/".join(parts[:depth]), parts[depth - 1]):
            if name in given:
                return name
    return None


def _folders(path: str) -> list[str]:
    return path.split("/")[:-1]


def repeat_described(samples: Sequence[Sample], wanted: bool | None, findings: Findings) -> list[Sample]:
    """Samples that metadata name, repeated by the numbers of their folders if repeats are wanted, else once."""
    matches = [_numbered(sample.image, wanted) for sample in samples]
    names = sorted({match[0] for match in matches if match})
    if not wanted:
        if wanted is None and names and all(matches):
            findings.remark(f"{examples(names)}: not read as repeats, since there are metadata; {_OPTION}")
        return list(samples)
    for sample, match in zip(samples, matches, strict=True):
        sample.repeats = int(match["repeats"]) if match else 1
    findings.leave_out([sample.image for sample in samples if not sample.repeats], _NEVER)
    findings.remark(f"repeats as in kohya's tools: {examples(names)}")
    return [sample for sample in samples if sample.repeats]


def _inner_folders(kept: Mapping[str, re.Match[str]]) -> set[str | None]:
    """The folders directly inside those of repeats; None for an image that isn't in one."""
    found = set()
    for path, match in kept.items():
        steps = path.split("/")
        found.add(first_folder(path, "/".join(steps[: steps.index(match[0]) + 1])))
    return found


def _doubt(numbers: Mapping[str, int], strays: Sequence[str], inner: Collection[str | None]) -> str | None:
    """Why the numbers may not be repeats, in words."""
    names = examples(sorted(numbers))
    if len(inner) > 1 and None not in inner and not all(is_storage_folder(str(name)) for name in inner):
        return f"{names}: not read as repeats, since all images are in folders inside; {_OPTION}"
    if strays:
        lie = "lies" if len(strays) == 1 else "lie"
        where = f"{plural(len(strays), 'image')}, such as {strays[0]}, {lie} elsewhere"
        return f"{names}: not read as repeats, since {where}; {_OPTION}, without the others"
    counts_up = len(numbers) > 1 and sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    if 0 in numbers.values() or counts_up:
        return f"{names} are read as numbered classes; {_OPTION}"
    return None


def _excluded(paths: Sequence[str], found: Collection[str]) -> dict[str, str]:
    """The images for regularisation and those that training wrote, each with the reason why it is excluded."""
    reason = "kohya's images for regularisation (with prior_path= the base generates them)"
    excluded = {path: reason for path in paths if _is_regularisation(path)}
    base = common_folder(paths)
    for path in paths:
        if path not in found and path not in excluded and _WRITTEN.fullmatch(first_folder(path, base) or ""):
            excluded[path] = "in folders that kohya's training writes beside its data"
    return excluded


def _is_regularisation(path: str) -> bool:
    return any(map(_REGULARISATION.fullmatch, path.split("/")[:-1]))


def _numbered(path: str, wanted: bool | None) -> re.Match[str] | None:
    """The first folder `10_name` on the path. Numbers of cameras and dates count only if repeats are wanted."""
    for step in path.split("/")[:-1]:
        is_storage = CAMERA.fullmatch(step) or DATE.fullmatch(step)
        if (wanted or not is_storage) and (match := _REPEATS.fullmatch(step)):
            return match
    return None
