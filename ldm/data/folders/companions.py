"""Images that are no samples: masks and control images of those beside them, and what programs leave.

A folder's name alone doesn't decide: `control` and `normal` are classes too. What lies beside it, and the files
themselves, say which it is.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from ldm.data.folders.arrays import arrays_beside
from ldm.data.folders.mask_pixels import NAMED, Pair, evidence_within, few, look
from ldm.data.folders.name_marks import marked
from ldm.data.folders.usual import previews, priors
from ldm.data.reading.beside import JUNK, is_junk, stem
from ldm.data.reading.layout import Meant, is_split, join, top
from ldm.data.reading.sample import Seen
from ldm.data.reading.store import Store

# Names of folders that hold something about the images beside them, where their files go by those images' names.
_SURE = (
    "masks|maps|segs?|segmentations?|segmentation(class|object)(aug)?|segmaps?|stuff(thing)?maps?|labels|annotations?"
    "|annos?|gt|gt(fine|coarse)|ground[-_ ]?truths?|depths?|edges|canny|hints|conditioning|trimaps?|mattes?|alphas"
    "|captions?|previews|semantics?|instances?|panoptic"
)
_MAYBE = "thumb|mask|map|label|normals?|edge|hint|controls?|conditions?|alpha|preview"  # classes are called so too
_AROUND = r"(.*[-_ ])?({})([-_ ]?(images?|imgs?|pngs?|ids?|rgb|colou?rs?))?"
_ABOUT = re.compile(_AROUND.format(f"{_SURE}|{_MAYBE}"), re.IGNORECASE)
_IS_SURE = re.compile(_AROUND.format(_SURE), re.IGNORECASE)
# Names of folders that hold the images themselves.
_IMAGES = re.compile(
    r"(.*[-_ ])?(images?|imgs?|photos?|pictures?|pics?|jpe?gs?|pngs?|jpegimages|rgb|colou?rs?|leftimg8bit|inputs?|raws?"
    r"|sources?|src|targets?|originals?|frames?|renders?|data|dataset)([-_ ]?\d+)?",
    re.IGNORECASE,
)
_MARKS = (
    "mask|masklabel|condlabel|map|seg|segmentation|parts|depth|canny|control|matte|alpha|thumb|thumbnail"
    "|gt(fine|coarse)_(color|labelids|labeltrainids|instanceids)"
)
_ABOUT_MARK = re.compile(_MARKS, re.IGNORECASE)
_ABOUT_FILE = re.compile(rf"(?P<stem>.+?)[-_. ]({_MARKS})([-_ ]?\d+)?", re.IGNORECASE)
_IMAGE_MARK = re.compile(r"_leftimg8bit$")
_BRUSH = re.compile(r"(.*/)?task-\d+-annotation-\d+-.*", re.IGNORECASE)  # a mask as Label Studio exports it


class Around:
    """The images inside some folders, by folder: `stems` by their names, and `tops`, the steps by which they are led
    to."""

    def __init__(self, folders: Collection[str], images: Iterable[str]):
        self.stems: dict[str, dict[str, str]] = defaultdict(dict)
        self.tops: dict[str, set[str | None]] = defaultdict(set)
        asked = {step for folder in folders for step in _upwards(folder)}
        for path in images:
            for base in _upwards(posixpath.dirname(path)):
                if base in asked:
                    self.stems[base].setdefault(_stem(path), path)
                    self.tops[base].add(top(path, base))

    def nearest(self, folder: str) -> str:
        """The folder, or the nearest around it that holds images."""
        return next(base for base in _upwards(folder) if base in self.stems)


def others(store: Store, images: Sequence[str], meant: Meant, known: Collection[str], seen: Seen) -> dict[str, str]:
    """Those of `images` that are no samples, with the reason. Where nothing else is there, these are meant.

    `known` are training's classes, where these images are to be validated on; `seen` is told of folders that might be
    about images and are taken for classes.
    """
    if meant.classes:
        return {}
    left = {path: JUNK for path in images if is_junk(path)}
    left |= previews(store, images)
    left |= priors([path for path in images if path not in left])
    left |= arrays_beside(store, [path for path in images if path not in left])
    left |= _files_about([path for path in images if path not in left])
    left |= marked(store, [path for path in images if path not in left], seen)
    left |= _folders_about(store, [path for path in images if path not in left], known, seen)
    return left if len(left) < len(images) else {}


def _files_about(images: Sequence[str]) -> dict[str, str]:
    """`cat-masklabel.png` beside `cat.jpg`, as OneTrainer has it, `cat_mask.png` and the like."""
    stems = {_IMAGE_MARK.sub("", stem(path).lower()) for path in images}
    left = {}
    for path in images:
        match = _ABOUT_FILE.fullmatch(stem(path)) if _ABOUT_MARK.search(path) else None
        if match and match["stem"].lower() in stems:
            left[path] = "named as masks and the like of the images beside them (metadata.jsonl can name them so)"
        elif _BRUSH.fullmatch(path):
            left[path] = "named as Label Studio's masks (metadata.jsonl can name them so)"
    return left


def _folders_about(store: Store, images: Sequence[str], known: Collection[str], seen: Seen) -> dict[str, str]:
    """What lies in masks/ and the like."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_name[_about_step(path) or ""].append(path)
    plain = by_name.pop("", [])
    if not plain or not by_name:
        return {}
    around = Around({_above(path, name) for name, found in by_name.items() for path in found}, plain)
    folders = {posixpath.dirname(path) for path in plain}
    left: dict[str, str] = {}
    for name, found in by_name.items():
        pairs = _pairs(found, name, around)
        if name in known:
            continue
        is_named = 2 * sum(pair.image is not None for pair in pairs) >= len(pairs)
        if (
            evidence := _evidence(store, name, pairs, around, folders)
            if is_named
            else _alone(store, name, pairs, around)
        ):
            reason = f"in {name}/, {evidence} ({NAMED}; data.classes=true takes {name}/ for a class)"
            left |= dict.fromkeys(found, reason)
        elif is_named:
            said = f"{name}/ is taken for a class, as its images are like those beside it"
            seen.aside(f"{said}; data.without='[{name}]' leaves it out")
    return left


def _about_step(path: str) -> str | None:
    return next((step for step in path.split("/")[:-1] if _may_be_about(step)), None)


@lru_cache(maxsize=2**16)
def _may_be_about(step: str) -> bool:
    return _ABOUT.fullmatch(step) is not None


def _pairs(found: Iterable[str], name: str, around: Around) -> list[Pair]:
    """Each file in folders `name` with the image that has its name beside the folder."""
    pairs = []
    for path in found:
        steps = path.split("/")
        at = steps.index(name)
        base = around.nearest("/".join(steps[:at]))
        pairs.append(Pair(path, "/".join(steps[at + 1 :]), base, around.stems[base].get(_stem(path))))
    return pairs


def _evidence(store: Store, name: str, pairs: Sequence[Pair], around: Around, folders: Collection[str]) -> str | None:
    """What says that the files are about the images, in words; None where they are a class beside classes."""
    beside = [around.tops[base] for base in {pair.base for pair in pairs}]
    by_name = "by the names of the images beside it"
    if _are_images(beside):
        return by_name
    if _repeats_folders(pairs, folders) or _are_marked(pairs):
        return by_name
    sure = _IS_SURE.fullmatch(name) and all(len(steps) < 2 for steps in beside)
    return evidence_within(store, [pair for pair in pairs if pair.image], bool(sure), by_name)


def _alone(store: Store, name: str, pairs: Sequence[Pair], around: Around) -> str | None:
    """What says so of files that go by names of their own."""
    bases = {pair.base for pair in pairs}
    if not _IS_SURE.fullmatch(name) or not _are_images([around.tops[base] for base in bases]):
        return None
    images = [path for base in bases for path in around.stems[base].values()]
    looks = [[look(store, path) for path in few(paths)] for paths in ([pair.path for pair in pairs], images)]
    about, image = ([found.few for found in of if found] for of in looks)
    return "of few values, as masks are" if all(about) and about and image and not any(image) else None


def _are_images(beside: Iterable[Iterable[str | None]]) -> bool:
    """Whether the folders beside, or none, are called as folders of images are."""
    return all(step is None or _IMAGES.fullmatch(step) or is_split(step) for steps in beside for step in steps)


def _repeats_folders(pairs: Sequence[Pair], folders: Collection[str]) -> bool:
    """masks/cats/1.png beside cats/1.png"""
    inner = [(pair.base, posixpath.dirname(pair.inner)) for pair in pairs]
    return all(folder and join(base, folder) in folders for base, folder in inner)


def _are_marked(pairs: Sequence[Pair]) -> bool:
    """cat_mask.png for cat.png"""
    return all(_stem(pair.path) != _plain_stem(pair.path) for pair in pairs)


def _above(path: str, name: str) -> str:
    """The folder that the path's first folder `name` lies in."""
    steps = path.split("/")
    return "/".join(steps[: steps.index(name)])


def _upwards(folder: str) -> Iterable[str]:
    """The folder and all around it, "" last."""
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
    yield ""


def _stem(path: str) -> str:
    """The name without its ending and without a mark that says what the file is."""
    name = _plain_stem(path)
    match = _ABOUT_FILE.fullmatch(name) if _ABOUT_MARK.search(name) else None
    return match["stem"] if match else _IMAGE_MARK.sub("", name)


def _plain_stem(path: str) -> str:
    return stem(posixpath.basename(path)).lower()
