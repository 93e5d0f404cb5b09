"""Folders as kohya's tools name them, `10_name`: an epoch visits their images that often."""

import re
from collections.abc import Collection, Mapping, Sequence

from ldm.common.errors import UserError
from ldm.data.folders.classes import CAMERA, DATE
from ldm.data.reading.layout import common_folder, top
from ldm.data.reading.sample import Sample, Seen, plural, some

_REPEATS = re.compile(r"(?P<repeats>\d{1,3})_(?P<name>.+)")
_REGULAR = re.compile(r"reg(ulari[sz]ation)?([-_ ]?(images|imgs|img|data))?", re.IGNORECASE)
_MADE = re.compile(r"(models?|samples?|logs?|outputs?)", re.IGNORECASE)  # what training leaves beside `img`
_BY_HAND = "data.repeats=true: for repeats"
_NEVER = "in a folder of 0 repeats"
Counted = dict[str, tuple[int, str]]


def repeats_of(paths: Sequence[str], wanted: bool | None, known: Collection[str], seen: Seen) -> Counted:
    """By image how often an epoch visits it, and its name, where all lie in folders `10_name`. Empty otherwise.

    Neither are images under `reg/`, which kohya's tools mix in as what the class looked like before, among them nor
    what training left in `model/`, `sample/` and `log/`. Numbers from 0 or 1 on, each once, number classes; so do
    folders that are `known` as training's classes. With `wanted`, images that lie elsewhere or in `0_name` are left
    out, as these tools do.
    """
    found = {path: match for path in paths if (match := _numbered(path, wanted))}
    kept = {path: match for path, match in found.items() if not _is_regular(path)}
    if wanted is False or not kept or {match[0] for match in kept.values()} & {*known}:
        return {}
    left = _left(paths, found)
    numbers = {match[0]: int(match["repeats"]) for match in kept.values()}
    if not wanted and (said := _doubt(numbers, [path for path in paths if path not in found and path not in left])):
        seen.aside(said)
        return {}
    strays = [path for path in paths if path not in found and path not in left]
    seen.leave(strays, "in no folder NUMBER_name, where data.repeats=true")
    seen.leave([path for path, match in kept.items() if not int(match["repeats"])], _NEVER)
    seen.left_out |= left
    said = ", ".join(f"{name} {number} times" for name, number in list(numbers.items())[:4] if number)
    seen.aside(f"repeats as kohya's tools count them: an epoch visits {said}{' ...' if len(numbers) > 4 else ''}")
    counted = {path: (int(match["repeats"]), match["name"].strip()) for path, match in kept.items()}
    return {path: value for path, value in counted.items() if value[0]}


def check_repeats(samples: Sequence[Sample]) -> None:
    """Raises UserError where none of the samples lies in a folder `10_name`, though repeats are wanted."""
    if not any(_numbered(sample.image, True) for sample in samples):
        raise UserError(
            "data.repeats=true, but no folder of images is named NUMBER_name, such as 10_dog: name them so."
        )


def repeat_described(samples: Sequence[Sample], wanted: bool | None, seen: Seen) -> list[Sample]:
    """Samples that metadata name, repeated by their folders where that is wanted; others are visited once."""
    matches = [_numbered(sample.image, wanted) for sample in samples]
    names = sorted({match[0] for match in matches if match})
    if not wanted:
        if wanted is None and names and all(matches):
            seen.aside(f"{some(names)}: not taken for repeats, as there are metadata; {_BY_HAND}")
        return list(samples)
    for sample, match in zip(samples, matches, strict=True):
        sample.repeats = int(match["repeats"]) if match else 1
    seen.leave([sample.image for sample in samples if not sample.repeats], _NEVER)
    seen.aside(f"repeats as kohya's tools count them: {some(names)}")
    return [sample for sample in samples if sample.repeats]


def _doubt(numbers: Mapping[str, int], strays: Sequence[str]) -> str | None:
    """Why the numbers may be no repeats, in words."""
    if strays:
        where = f"{plural(len(strays), 'image')}, such as {strays[0]}, lies elsewhere"
        return f"{some(sorted(numbers))}: not taken for repeats, as {where}; {_BY_HAND}, without the others"
    if 0 in numbers.values() or len(numbers) > 1 and sorted(numbers.values()) == list(range(1, len(numbers) + 1)):
        return f"{some(sorted(numbers))} are taken for numbered classes; {_BY_HAND}"
    return None


def _left(paths: Sequence[str], found: Collection[str]) -> dict[str, str]:
    """Images for regularisation, and what training made of the images."""
    left = {path: "kohya's images for regularisation (prior_path= makes the model's own)"
            for path in paths if _is_regular(path)}  # fmt: skip
    base = common_folder(paths)
    for path in paths:
        if path not in found and path not in left and _MADE.fullmatch(top(path, base) or ""):
            left[path] = "beside kohya's folders, where training leaves what it made"
    return left


def _is_regular(path: str) -> bool:
    return any(map(_REGULAR.fullmatch, path.split("/")[:-1]))


def _numbered(path: str, wanted: bool | None) -> re.Match[str] | None:
    """A camera's and a date's numbers are no repeats, unless they are wanted."""
    steps = [step for step in path.split("/")[:-1] if wanted or not CAMERA.fullmatch(step) and not DATE.fullmatch(step)]
    return next((match for step in steps if (match := _REPEATS.fullmatch(step))), None)
