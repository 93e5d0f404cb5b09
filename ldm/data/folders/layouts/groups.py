"""Images that belong together, such as the slices of a patient or the frames of a clip: one side of the split has all
of them."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import evenly_spaced, stem

FOLDER, NAME = "folder", "name"
_COLUMN = re.compile(r"\w[\w .-]*")  # what may be the name of one
_LEAST = 4  # images of a group, on average, below which names aren't taken for those of series
_LOOKED_AT = 1000  # files
_AGAIN = 1.5  # groups that have the same number, on average, where numbers start over in each
_MOSTLY = 0.9  # the share of the files that have such names
_SERIES = (
    r"(patients?|pat|pt|subjects?|subj?|cases?|clips?|videos?|vid|scenes?|sequences?|seq|series|episodes?|volumes?|vol"
    r"|study|studies|movies?|slides?|wells?|plots?|takes?|person|speaker|drive|scan|sub)"
)
_UID = r"\d+(\.\d+){4,}"  # DICOM's
_STEP = r"(frames?|frm|slices?|slc|layers?|z|axial|coronal|sagittal)"
_IS_SERIES = re.compile(rf"(.*[^a-z])?{_SERIES}[-_. #]*\d+", re.IGNORECASE)
# patient012, 2011_09_26_drive_0001_sync
_IS_SERIES_FOLDER = re.compile(rf"{_IS_SERIES.pattern}([-_. ].*)?|{_UID}", re.IGNORECASE)
# patient012_slice034, clip3_frame_0001, case_12_034; also frame_0001, whose folder is the clip
_IS_STEP = re.compile(rf"(?P<core>(.*[^a-z])?){_STEP}[-_. ]*\d+", re.IGNORECASE)
# clip1_mp4-5_jpg.rf.0f3a: Roboflow's name of frame 5 of clip1.mp4
_ROBOFLOW = re.compile(r"(?P<name>.+?)(_(jpe?g|png|bmp|webp))?\.rf\.[0-9a-z]+", re.IGNORECASE)
_IS_FRAME = re.compile(r".+[-_. ](mp4|mov|avi|mkv|webm|m4v|gif)[-_ ]\d+", re.IGNORECASE)
_IS_SNAPSHOT = re.compile(r"(IMG|DSC[NF]?|PXL|MVIMG|VID|DJI|GOPR|image|photo|screenshot)[-_ ]?\d.*", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(?P<core>.*?)[-_. ]*[^\W\d_]*[-_. ]*(?P<number>\d+)")


def check_group(group: str | None) -> str | None:
    """The option `group`. Raises UserError unless it is `folder`, `name`, a regular expression with a group, or may be
    the name of a column."""
    if group in (None, FOLDER, NAME):
        return group
    step = f"give {FOLDER}, {NAME}, a column of the metadata, or a regular expression "
    step += "with parentheses around what images of a group share"
    step += r""": 'data.group="(patient\d+)"'"""
    try:
        found = re.compile(str(group))
    except re.error as error:
        raise UserError(f"data.group={group} isn't a regular expression ({error}): {step}.") from None
    if not found.groups and not _COLUMN.fullmatch(str(group)):
        raise UserError(f"data.group={group} has no parentheses: {step}.")
    return group


def column_of(group: str | None) -> str | None:
    """The column of the metadata that the option `group` names, if it does."""
    return None if group in (None, FOLDER, NAME) or re.compile(group).groups else group


def group_names(paths: Sequence[str], group: str, values: Mapping[str, str]) -> dict[str, str]:
    """The group of each image: its value in the metadata's column, `values`; its folder; its folder and name without
    the last number and the word before it; or what the regular expression's group `group`, or else its first group,
    matches in its path.

    Raises UserError if there are fewer than two groups, or an image belongs to none.
    """
    found = {path: name for path in paths if (name := _group_of(path, group, values)) is not None}
    if column_of(group) and not values:
        raise UserError(
            f"data.group={group} has no parentheses, and no metadata file has values in a column '{group}': name a "
            f"column of metadata.jsonl or metadata.csv, or give {FOLDER}, {NAME} or a regular expression with "
            "parentheses."
        )
    if strays := [path for path in paths if path not in found]:
        count = f"{len(strays)} of {plural(len(paths), 'image')}"
        if column_of(group):
            raise UserError(f"'{group}' of the metadata is empty for {count} ({examples(strays)}): fill it in.")
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
    values = findings.groups
    own = {_group_of(path, group, values) for path in train} - {None}
    shared = sorted({str(name) for path in val if (name := _group_of(path, group, values)) in own})
    if shared:
        count = f"{plural(len(shared), 'group')} of data.group={group}"
        message = f"training and validation share {count} in the splits of the data set: {examples(shared)}"
        findings.warn(f"{message}; move the images of each group to one side")


def report_series(paths: Sequence[str], labelled: bool, findings: Findings) -> None:
    """Warns that images are slices or frames of several patients, clips and the like by their names, as these are
    split image by image. `labelled` is whether folders are read as classes.

    Names show a series by a word and a number (patient012, frame_0001), a DICOM UID, or by counting: they end in a
    number that starts over and has few gaps for each of several beginnings, which are numbered too
    (BraTS20_Training_001_5). What may be one is only remarked on: UIDs as names, and folders whose files count.
    """
    looked_at = evenly_spaced(paths, _LOOKED_AT)
    if not looked_at:
        return
    for kind, option in ((_of_folder, None), (_of_name, NAME), (_of_step_in_folder, FOLDER), (_of_count, NAME)):
        if sum(kind(path) is not None for path in looked_at) < _MOSTLY * len(looked_at):
            continue
        groups: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            if (name := kind(path)) is not None:
                groups[name].append(path)
        if len(paths) >= _LEAST * len(groups) and (kind is not _of_count or _start_over(groups)):
            _warn(groups, option or _option_of_folders(groups), labelled, findings)
            return
    _remark_uids(paths, findings)
    _remark_counting_folders(paths, labelled, findings)


def _remark_uids(paths: Sequence[str], findings: Findings) -> None:
    """Remarks that names are DICOM UIDs, which don't say whose the images are."""
    if len(paths) > 1 and all(re.fullmatch(_UID, posixpath.basename(stem(path))) for path in paths):
        message = f"the names are DICOM UIDs ({examples(paths, 1)}), and don't say which images are of one patient"
        findings.remark(f"{message}: data.group= names a column of metadata.csv that does (patient_id)")


def _remark_counting_folders(paths: Sequence[str], labelled: bool, findings: Findings) -> None:
    """Remarks that in each of several folders the files count from 0 or 1 without a gap, in numbers of as many digits,
    as frames of clips do (bear/00000.jpg), and some programs' files of classes."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[posixpath.dirname(path)].append(posixpath.basename(stem(path)))
    if len(groups) < 2 or len(paths) < _LEAST * len(groups) or not all(map(_counts, groups.values())):
        return
    folders = [f"{name}/" for name in sorted(groups)]
    if labelled:
        findings.class_note = "if they are clips, data.group=folder data.classes=none keeps each on one side of a split"
    else:
        message = f"the files of {len(folders)} folders are numbered like frames ({examples(folders)})"
        findings.remark(f"{message}: if these are clips, data.group=folder keeps each on one side of the split")


def _counts(names: Sequence[str]) -> bool:
    """Whether the names are 0000, 0001, ... or 0001, 0002, ... without a gap."""
    if not all(name.isdecimal() for name in names) or len(set(map(len, names))) > 1 or not min(names).startswith("00"):
        return False
    numbers = {*map(int, names)}
    return min(numbers) < 2 and len(numbers) == max(numbers) - min(numbers) + 1


def _start_over(groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether the last numbers in the names of each group count, from about the same number in several groups."""
    found = [{int(_numbered(path)[1]) for path in paths} for paths in groups.values()]
    n = sum(map(len, found))
    gapless = sum(len(numbers) for numbers in found if max(numbers) - min(numbers) < 2 * len(numbers))
    return len(found) > 1 and gapless >= _MOSTLY * n and n >= _AGAIN * len(set().union(*found))


def _option_of_folders(groups: Mapping[str, Sequence[str]]) -> str:
    """The value of data.group= that makes the folders `groups` the groups."""
    if all(posixpath.dirname(path) == folder for folder, paths in groups.items() for path in paths):
        return FOLDER
    depths = {folder.count("/") for folder in groups}
    least = min(depths)
    return "([^/]+)/" if not least else f"^(([^/]+/){{{least + 1}}})"


def _warn(groups: Mapping[str, Sequence[str]], option: str, labelled: bool, findings: Findings) -> None:
    names = sorted(groups)
    if len(names) == 1:
        message = (
            "to judge by their names, all images are slices or frames of one series, and neighbours "
            "are on both sides of "
        )
        findings.warn(f"{message}the split: data.val_root= gives images of another series to validate on")
        return
    message = f"the images are slices or frames of {len(names)} series, to judge by their names ({examples(names)})"
    classes = " and the folders as classes" if labelled and option != NAME else ""
    both = f"each is read as a separate image{classes}, and a series may be on both sides of the split"
    step = " data.classes=none" if classes else ""
    given = f"data.group={option}" if option in (FOLDER, NAME) else f"'data.group=\"{option}\"'"
    findings.warn(f"{message}: {both}; {given}{step} keeps each on one side")


def _group_of(path: str, group: str, values: Mapping[str, str]) -> str | None:
    if column_of(group):
        return values.get(path)
    if group == FOLDER:
        return posixpath.dirname(path) or "."
    if group == NAME:
        return _without_number(path)
    if match := re.search(group, path):
        return match["group"] if "group" in match.re.groupindex else match[1]
    return None


def _plain(path: str) -> str:
    """An image's path without its ending and what Roboflow adds."""
    match = _ROBOFLOW.fullmatch(stem(path))
    return match["name"] if match else stem(path)


def _numbered(path: str) -> tuple[str, str]:
    """The series and the number in a name, with its folder: patient012 and 034 for patient012_slice034.png. The number
    is empty if there is none."""
    folder, name = posixpath.split(_plain(path))
    match = _LAST_NUMBER.fullmatch(name)
    return (posixpath.join(folder, match["core"]), match["number"]) if match else (posixpath.join(folder, name), "")


def _without_number(path: str) -> str:
    return _numbered(path)[0]


def _of_folder(path: str) -> str | None:
    """The outermost folder that is one of a series: patient012 in patient012/T1/034.png."""
    steps = path.split("/")
    for depth, step in enumerate(steps[:-1], start=1):
        if _IS_SERIES_FOLDER.fullmatch(step):
            return "/".join(steps[:depth])
    return None


def _of_name(path: str) -> str | None:
    """The series in a file's name: patient012_slice034.png, clip3_034.png and clip_mp4-034.png have one."""
    core, own = _without_number(path), posixpath.basename(_plain(path))
    name = posixpath.basename(core)
    is_step = name and (_IS_STEP.fullmatch(own) or _IS_FRAME.fullmatch(own))
    return core if is_step or _IS_SERIES.fullmatch(name) else None


def _of_count(path: str) -> str | None:
    """The beginning of BraTS20_Training_001_5.png: letters and a number before the last one, unless a camera or phone
    gives such names."""
    core, number = _numbered(path)
    name = posixpath.basename(core)
    ours = number and re.search(r"[^\W\d_]", name) and re.search(r"\d", name) and not _IS_SNAPSHOT.fullmatch(name)
    return core if ours else None


def _of_step_in_folder(path: str) -> str | None:
    """The folder of a file that is named as a step: dance for dance/frame_0001.png."""
    folder, name = posixpath.split(_plain(path))
    match = _IS_STEP.fullmatch(name)
    return (folder or ".") if match and not match["core"] else None


def grouped(found: Sequence[str], group: str, values: Mapping[str, str]) -> Callable[[str], str]:
    """A function that gives an image's group for its path. Raises UserError like `group_names`."""
    return group_names(found, group, values).__getitem__
