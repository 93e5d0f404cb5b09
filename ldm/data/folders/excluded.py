"""Images that aren't samples: masks and control images of other images, and what programs leave behind.

A folder's name alone doesn't decide, as `control` and `normal` may be classes too. The folders beside it and the files
themselves decide.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from ldm.data.folders.common_names import grids, previews, priors
from ldm.data.folders.companion_arrays import arrays_beside
from ldm.data.folders.layouts.tiles import report_tiles
from ldm.data.folders.mask_pixels import NAMED, SAMPLED, Pair, mask_evidence, pixel_facts
from ldm.data.folders.scene_names import companions_by_name, report_bands
from ldm.data.reading.findings import Findings
from ldm.data.reading.paths import JUNK, evenly_spaced, first_folder, is_junk, join, stem
from ldm.data.reading.split_folders import FIRST, FolderOptions, is_split
from ldm.data.reading.store import Store

# Folders of masks and the like: their files have the names of the images beside the folder.
_SURE = (
    "masks|maps|segs?|segmentations?|segmentation(class|object)(aug)?|segmaps?|stuff(thing)?maps?|labels|annotations?"
    "|annos?|gt|gt(fine|coarse)|ground[-_ ]?truths?|depths?|edges|canny|hints|conditioning|trimaps?|mattes?|alphas"
    "|captions?|previews|semantics?|instances?|panoptic"
)
_MAYBE = "thumb|mask|map|label|normals?|edge|hint|controls?|conditions?|alpha|preview"  # names of classes too
_AROUND = r"(.*[-_ ])?({})([-_ ]?(images?|imgs?|pngs?|ids?|rgb|colou?rs?))?"
_MASK_FOLDER = re.compile(_AROUND.format(f"{_SURE}|{_MAYBE}"), re.IGNORECASE)
_SURE_MASK_FOLDER = re.compile(_AROUND.format(_SURE), re.IGNORECASE)
# Folders of the images themselves.
_IMAGE_FOLDER = re.compile(
    r"(.*[-_ ])?(images?|imgs?|photos?|pictures?|pics?|jpe?gs?|pngs?|jpegimages|rgb|colou?rs?|leftimg8bit|inputs?|raws?"
    r"|sources?|src|targets?|originals?|frames?|renders?|data|dataset)([-_ ]?\d+)?",
    re.IGNORECASE,
)
_MASK_WORDS = (
    "mask|masklabel|condlabel|map|seg|segmentation|parts|depth|canny|openpose|softedge|lineart|mlsd|control|matte|alpha"
    "|thumb|thumbnail"
    "|gt(fine|coarse)_(color|labelids|labeltrainids|instanceids)"
)
_MASK_WORD = re.compile(_MASK_WORDS, re.IGNORECASE)
_MASK_FILE = re.compile(rf"(?P<stem>.+?)[-_. ]({_MASK_WORDS})([-_ ]?\d+)?", re.IGNORECASE)
_LAST_WORD = re.compile(r"[-_. ][a-z]+([-_ ]?\d+)?$")
_IMAGE_SUFFIX = re.compile(r"_leftimg8bit$")
_LABEL_STUDIO = re.compile(r"(.*/)?task-\d+-annotation-\d+-.*", re.IGNORECASE)  # a mask as Label Studio exports it


class FolderImages:
    """The images inside some folders: `by_stem` has them for each folder by their names, `first_folders` the folders
    right below it that hold them."""

    def __init__(self, folders: Collection[str], images: Iterable[str]):
        self.by_stem: dict[str, dict[str, str]] = defaultdict(dict)
        self.first_folders: dict[str, set[str | None]] = defaultdict(set)
        wanted = {step for folder in folders for step in _upwards(folder)}
        for path in images:
            for base in _upwards(posixpath.dirname(path)):
                if base in wanted:
                    self.by_stem[base].setdefault(name_of_image(path), path)
                    self.first_folders[base].add(first_folder(path, base))

    def nearest(self, folder: str) -> str:
        """The folder, or the nearest one around it that holds images."""
        return next(base for base in _upwards(folder) if base in self.by_stem)


def excluded_images(
    store: Store, images: Sequence[str], options: FolderOptions, *, known: Collection[str], findings: Findings
) -> dict[str, str]:
    """Maps each of `images` that isn't a sample to the reason; empty where that would be all of them.

    `known` are the training classes if these images are for validation. Folders that might be masks and are read as
    classes are added to `findings`.
    """
    if options.classes and options.level == FIRST:
        return {path: JUNK for path in images if is_junk(path, sure=True)}
    excluded = {path: JUNK for path in images if is_junk(path)}

    def rest() -> list[str]:
        """The images that no rule has excluded so far."""
        return [path for path in images if path not in excluded]

    excluded |= previews(store, images)
    excluded |= priors(rest())
    excluded |= grids(rest())
    excluded |= arrays_beside(store, rest())
    excluded |= _named_as_masks(rest())
    excluded |= companions_by_name(store, rest(), findings)
    excluded |= _in_mask_folders(store, rest(), known, findings)
    report_bands(rest(), findings)
    report_tiles(rest(), findings)
    return excluded if len(excluded) < len(images) else {}


def _named_as_masks(images: Sequence[str]) -> dict[str, str]:
    """Files named as masks beside their image, such as OneTrainer's `cat-masklabel.png`, or `cat_mask.png`."""
    stems = {_IMAGE_SUFFIX.sub("", stem(path).lower()) for path in images}
    found = {}
    for path in images:
        match = _MASK_FILE.fullmatch(stem(path)) if _MASK_WORD.search(path) else None
        if match and match["stem"].lower() in stems:
            found[path] = f"named like masks or other companions of the images beside them ({NAMED})"
        elif _LABEL_STUDIO.fullmatch(path):
            found[path] = f"named as Label Studio's masks ({NAMED})"
    return found


def _in_mask_folders(store: Store, images: Sequence[str], known: Collection[str], findings: Findings) -> dict[str, str]:
    """The files in masks/ and the like."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_folder[_mask_folder(path) or ""].append(path)
    others = by_folder.pop("", [])
    if not others or not by_folder:
        return {}
    around = FolderImages({_above(path, name) for name, found in by_folder.items() for path in found}, others)
    image_folders = {posixpath.dirname(path) for path in others}
    excluded: dict[str, str] = {}
    for name, found in by_folder.items():
        pairs = _pairs(found, name, around)
        if name in known:
            continue
        has_image_names = 2 * sum(pair.image is not None for pair in pairs) >= len(pairs)
        if has_image_names:
            evidence = _evidence(store, name, pairs, around=around, image_folders=image_folders)
        else:
            evidence = _evidence_without_names(store, name, pairs, around)
        if evidence:
            reason = f"in {name}/, {evidence} ({NAMED}; data.classes=true reads {name}/ as a class)"
            excluded |= dict.fromkeys(found, reason)
        elif has_image_names:
            message = f"{name}/ is read as a class, since its images are like those beside it"
            findings.remark(f"{message}; data.without='[{name}]' leaves it out")
    return excluded


def _mask_folder(path: str) -> str | None:
    """The first folder on the path that is named like a folder of masks."""
    return next((step for step in path.split("/")[:-1] if _may_hold_masks(step)), None)


@lru_cache(maxsize=2**16)
def _may_hold_masks(folder: str) -> bool:
    return _MASK_FOLDER.fullmatch(folder) is not None


def _pairs(found: Iterable[str], name: str, around: FolderImages) -> list[Pair]:
    """Each file in folders called `name`, with the image of the same name beside the folder, if there is one."""
    pairs = []
    for path in found:
        steps = path.split("/")
        at = steps.index(name)
        base = around.nearest("/".join(steps[:at]))
        images = around.by_stem[base]
        image = images.get(name_of_image(path)) or images.get(_without_last_word(path))
        pairs.append(Pair(path=path, inner="/".join(steps[at + 1 :]), base=base, image=image))
    return pairs


def _evidence(
    store: Store, name: str, pairs: Sequence[Pair], *, around: FolderImages, image_folders: Collection[str]
) -> str | None:
    """The evidence that the files belong to the images, in words; None if they are a class beside other classes."""
    beside = [around.first_folders[base] for base in {pair.base for pair in pairs}]
    by_name = "whose files have the names of the images beside it"
    if _are_image_folders(beside) or _repeat_folders(pairs, image_folders) or _have_mask_words(pairs):
        return by_name
    sure = _SURE_MASK_FOLDER.fullmatch(name) is not None and all(len(folders) < 2 for folders in beside)
    return mask_evidence(store, [pair for pair in pairs if pair.image], sure, by_name)


def _evidence_without_names(store: Store, name: str, pairs: Sequence[Pair], around: FolderImages) -> str | None:
    """Like `_evidence`, for files whose names differ from those of the images."""
    bases = {pair.base for pair in pairs}
    if not _SURE_MASK_FOLDER.fullmatch(name) or not _are_image_folders([around.first_folders[base] for base in bases]):
        return None
    masks = _few_values(store, [pair.path for pair in pairs])
    images = _few_values(store, [path for base in bases for path in around.by_stem[base].values()])
    are_masks = masks and images and all(masks) and not any(images)
    return "with few values, like masks" if are_masks else None


def _few_values(store: Store, paths: Sequence[str]) -> list[bool]:
    """For each of some files that can be read, whether it has few values."""
    facts = [pixel_facts(store, path) for path in evenly_spaced(paths, SAMPLED)]
    return [found.has_few_values for found in facts if found]


def _are_image_folders(beside: Iterable[Iterable[str | None]]) -> bool:
    """Whether all neighbouring folders, if any, are named as folders of images."""
    return all(step is None or _IMAGE_FOLDER.fullmatch(step) or is_split(step) for steps in beside for step in steps)


def _repeat_folders(pairs: Sequence[Pair], image_folders: Collection[str]) -> bool:
    """Whether the folder repeats the folders beside it, as masks/cats/1.png beside cats/1.png."""
    inner = [(pair.base, posixpath.dirname(pair.inner)) for pair in pairs]
    return all(folder and join(base, folder) in image_folders for base, folder in inner)


def _have_mask_words(pairs: Sequence[Pair]) -> bool:
    """Whether the files are named with a word for masks: cat_mask.png for cat.png."""
    return all(name_of_image(pair.path) != _full_stem(pair.path) for pair in pairs)


def _above(path: str, name: str) -> str:
    """The folder that holds the first folder `name` on the path."""
    steps = path.split("/")
    return "/".join(steps[: steps.index(name)])


def _upwards(folder: str) -> Iterable[str]:
    """The folder and all folders around it, "" last."""
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
    yield ""


def name_of_image(path: str) -> str:
    """The file's name without its ending and without a word that says that it is a mask, or the image itself."""
    name = _full_stem(path)
    match = _MASK_FILE.fullmatch(name) if _MASK_WORD.search(name) else None
    return match["stem"] if match else _IMAGE_SUFFIX.sub("", name)


def _without_last_word(path: str) -> str:
    """The name without its last word, whatever it is: `cat` for cat.pose.png and cat_lineart_2.png."""
    return _LAST_WORD.sub("", _full_stem(path))


def _full_stem(path: str) -> str:
    return stem(posixpath.basename(path)).lower()
