"""Images that belong together, such as the slices of a patient or the frames of a clip: one side of the split has all
of them."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import evenly_spaced, stem

FOLDER, NAME = "folder", "name"
_LEAST = 4  # images of a group, on average, below which names aren't taken for those of series
_LOOKED_AT = 1000  # files
_MOSTLY = 0.9  # the share of the files that have such names
_SERIES = (
    r"(patients?|pat|pt|subjects?|subj?|cases?|clips?|videos?|vid|scenes?|sequences?|seq|series|episodes?|volumes?|vol"
    r"|study|studies|movies?|slides?|wells?|plots?|takes?|person|speaker)"
)
_STEP = r"(frames?|frm|slices?|slc|layers?|z|axial|coronal|sagittal)"
_IS_SERIES = re.compile(rf"(.*[^a-z])?{_SERIES}[-_. #]*\d+", re.IGNORECASE)
# patient012_slice034, clip3_frame_0001, case_12_034; also frame_0001, whose folder is the clip
_IS_STEP = re.compile(rf"(?P<core>(.*[^a-z])?){_STEP}[-_. ]*\d+", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(?P<core>.*?)[-_. ]*[^\W\d_]*[-_. ]*\d+")


def check_group(group: str | None) -> str | None:
    """The option `group`. Raises UserError unless it is `folder`, `name`, or a regular expression with a group."""
    if group in (None, FOLDER, NAME):
        return group
    step = f"give {FOLDER}, {NAME}, or a regular expression with parentheses around what images of a group share"
    step += r""": 'data.group="(patient\d+)"'"""
    try:
        found = re.compile(str(group))
    except re.error as error:
        raise UserError(f"data.group={group} isn't a regular expression ({error}): {step}.") from None
    if not found.groups:
        raise UserError(f"data.group={group} has no parentheses: {step}.")
    return group


def group_names(paths: Sequence[str], group: str) -> dict[str, str]:
    """The group of each image: its folder, its folder and name without the last number and the word before it, or what
    the regular expression's group `group`, else the first one, matches in its path.

    Raises UserError if there are fewer than two groups, or an image belongs to none.
    """
    found = {path: name for path in paths if (name := _group_of(path, group)) is not None}
    if strays := [path for path in paths if path not in found]:
        count = f"{len(strays)} of {plural(len(paths), 'image')}"
        raise UserError(
            f"data.group={group} matches nothing in the paths of {count} ({examples(strays)}): change it so that every "
            "image has a group, or leave these out with data.without=."
        )
    if len(names := {*found.values()}) < 2:
        one = f"one group, {examples(sorted(names))}" if names else "no image"
        raise UserError(
            f"data.group={group} finds {one}; training and validation need a group each: leave it out, or give other "
            "images with data.val_root=."
        )
    return found


def report_shared_groups(train: Sequence[str], val: Sequence[str], group: str, findings: Findings) -> None:
    """Warns of groups on both sides of a split that the data set itself names."""
    own = {_group_of(path, group) for path in train} - {None}
    shared = sorted({str(name) for path in val if (name := _group_of(path, group)) in own})
    if shared:
        count = f"{plural(len(shared), 'group')} of data.group={group}"
        message = f"training and validation share {count} in the splits of the data set: {examples(shared)}"
        findings.warn(f"{message}; move the images of each group to one side")


def report_series(paths: Sequence[str], labelled: bool, findings: Findings) -> None:
    """Warns that images are slices or frames of several patients, clips and the like by their names, as these are
    split image by image. `labelled` is whether folders are read as classes."""
    looked_at = evenly_spaced(paths, _LOOKED_AT)
    for kind, option in ((_of_folder, FOLDER), (_of_name, NAME), (_of_step_in_folder, FOLDER)):
        if sum(kind(path) is not None for path in looked_at) < _MOSTLY * len(looked_at):
            continue
        groups: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            if (name := kind(path)) is not None:
                groups[name].append(path)
        if len(paths) >= _LEAST * len(groups):
            _warn(groups, option, labelled, findings)
            return


def _warn(groups: dict[str, list[str]], option: str, labelled: bool, findings: Findings) -> None:
    names = sorted(groups)
    if len(names) == 1:
        message = (
            "to judge by their names, all images are slices or frames of one series, and neighbours "
            "are on both sides of "
        )
        findings.warn(f"{message}the split: data.val_root= gives images of another series to validate on")
        return
    message = f"the images are slices or frames of {len(names)} series, to judge by their names ({examples(names)})"
    classes = " and the folders as classes" if labelled and option == FOLDER else ""
    both = f"each is read as a separate image{classes}, and a series may be on both sides of the split"
    step = " data.classes=none" if classes else ""
    findings.warn(f"{message}: {both}; data.group={option}{step} keeps each on one side")


def _group_of(path: str, group: str) -> str | None:
    if group == FOLDER:
        return posixpath.dirname(path) or "."
    if group == NAME:
        return _without_number(path)
    if match := re.search(group, path):
        return match["group"] if "group" in match.re.groupindex else match[1]
    return None


def _without_number(path: str) -> str:
    """patient012 for patient012_slice034.png, with its folder"""
    folder, name = posixpath.split(stem(path))
    match = _LAST_NUMBER.fullmatch(name)
    return posixpath.join(folder, match["core"] if match else name)


def _of_folder(path: str) -> str | None:
    """The folder of patient012/034.png"""
    folder = posixpath.dirname(path)
    return folder if _IS_SERIES.fullmatch(posixpath.basename(folder)) else None


def _of_name(path: str) -> str | None:
    """The series in the names of patient012_slice034.png and clip3_034.png"""
    core = _without_number(path)
    name = posixpath.basename(core)
    is_step = name and _IS_STEP.fullmatch(posixpath.basename(stem(path)))
    return core if is_step or _IS_SERIES.fullmatch(name) else None


def _of_step_in_folder(path: str) -> str | None:
    """The folder of dance/frame_0001.png"""
    folder, name = posixpath.split(stem(path))
    match = _IS_STEP.fullmatch(name)
    return (folder or ".") if match and not match["core"] else None


def grouped(found: Sequence[str], group: str) -> Callable[[str], str]:
    """A function that gives an image's group for its path. Raises UserError like `group_names`."""
    return group_names(found, group).__getitem__
