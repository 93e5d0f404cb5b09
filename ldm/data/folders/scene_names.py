"""Files that show one scene, with names that differ by a word at the end or the start.

Such as 0_sat.jpg and 0_mask.png, img_1.jpg and mask_1.png, wall_albedo.png, wall_normal.png and wall_roughness.png.
"""

import posixpath
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ldm.data.folders.mask_pixels import NAMED, Pair, mask_evidence
from ldm.data.reading.findings import Findings
from ldm.data.reading.paths import stem
from ldm.data.reading.store import Store

# Words for masks, maps and other companions of an image.
_WORDS = (
    "mask masks label labels seg segm segmentation gt groundtruth annotation anno parsing trimap matte alpha instance "
    "semantic depth disparity disp flow edge edges canny normal normals albedo basecolor roughness metallic metalness "
    "ao height displacement specular emissive opacity pose openpose lineart softedge scribble hed"
)
_COMPANIONS = frozenset(_WORDS.split())
_LAST = re.compile(r"(?P<core>.+)(?P<mark>[-_. ][a-z]+([-_ ]?\d+k?)?)")  # also normal_2k
_FIRST = re.compile(r"(?P<mark>[a-z]+[-_. ]?)(?P<core>.*\d.*)")
_WORD = re.compile(r"\*?[-_. ]?([a-z]+).*")
# Bands of satellites, channels of microscopes and exposures: T32_B02_10m.tif, A01_s1_w1.tif, r01c01f01-ch1sk1.tiff
_BAND = re.compile(
    r"(?P<before>(.*[-_. ])?)"
    r"(?P<mark>b(0\d|1[0-2]|8a)|(band|ch(annel)?)[-_]?\d+|w\d|ev[-+]?\d(\.\d+)?|dapi|gfp|yfp|nir)"
    r"(?P<after>(sk\d.*|[-_. ](\d+m|[a-z]+))?)"  # not ch01_p02, a page of a chapter
)
_MOST_PATTERNS, _LOOKED_AT = 12, 1000  # patterns that a warning names, files
Scene = dict[str, str]  # files by the pattern of their names, such as "*_mask.*"


def companions_by_name(store: Store, images: Sequence[str], findings: Findings) -> dict[str, str]:
    """Maps each of `images` that is a mask or another companion of an image of its scene, by name and pixels, to the
    reason.

    Scenes whose files are all used are added to `findings`.
    """
    scenes = _scenes(images)
    if not scenes or 2 * sum(map(len, scenes)) < len(images):
        return {}
    excluded: dict[str, str] = {}
    for pattern in sorted({pattern for scene in scenes for pattern in scene if _is_companion(pattern)}):
        pairs = [pair for scene in scenes if pattern in scene and (pair := _pair(scene, pattern))]
        by_name = f"named {pattern}, beside images of the same name"
        if evidence := mask_evidence(store, pairs, False, by_name):
            excluded |= {scene[pattern]: f"{evidence} ({NAMED})" for scene in scenes if pattern in scene}
    used = [{pattern: path for pattern, path in scene.items() if path not in excluded} for scene in scenes]
    _report(used, findings)
    return excluded


def report_bands(images: Sequence[str], findings: Findings) -> None:
    """Warns that bands, channels or exposures of one scene are files of their own, as each is read as an image."""
    looked_at = random.Random(0).sample(images, min(len(images), _LOOKED_AT))
    if not any(map(_band, looked_at)):
        return
    scenes: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for path in images:
        if found := _band(path):
            scene, mark = found
            scenes[scene].setdefault(mark, path)
    several = [scene for scene in scenes.values() if len(scene) > 1]
    if len(several) < 2 or 2 * sum(map(len, several)) < len(images):
        return
    counts = Counter(mark for scene in several for mark in scene)
    each = ", ".join(f"{count} {mark}" for mark, count in counts.most_common(4)) + (", ..." if len(counts) > 4 else "")
    message = f"{len(several)} scenes have bands or channels in several files, to judge by the names ({each})"
    result = "each file is read as a separate image, and one scene may be split between training and validation"
    findings.warn(f"{message}: {result}; put the bands of a scene into one .tif or .npy to train on them together")


def _band(path: str) -> tuple[tuple[str, str, str], str] | None:
    """The scene of a file by its folder and the rest of its name, and its band; None for other names."""
    folder, name = posixpath.split(stem(path).lower())
    match = _BAND.fullmatch(name)
    return ((folder, match["before"], match["after"]), match["mark"]) if match else None


def _scenes(images: Sequence[str]) -> list[Scene]:
    """Sets of two or more files, at least one of them named as a companion."""
    looked_at = random.Random(0).sample(images, min(len(images), _LOOKED_AT))  # most data sets have no scenes
    if not any(_is_companion(pattern) for path in looked_at for _, pattern in _patterns(path)):
        return []
    found: dict[tuple[str, ...], Scene] = defaultdict(dict)
    for path in images:
        for key, pattern in _patterns(path):
            found[key].setdefault(pattern, path)
    return [scene for scene in found.values() if len(scene) > 1 and any(map(_is_companion, scene))]


def _patterns(path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The folder, the scene's name, and the pattern that the rest of the file's name makes."""
    folder, name = posixpath.split(stem(path).lower())
    if match := _LAST.fullmatch(name):
        yield (folder, match["core"], "*"), f"*{match['mark']}.*"
    if match := _FIRST.fullmatch(name):
        yield (folder, "*", match["core"]), f"{match['mark']}*"


def _is_companion(pattern: str) -> bool:
    match = _WORD.fullmatch(pattern)
    return match is not None and match[1] in _COMPANIONS


def _pair(scene: Mapping[str, str], pattern: str) -> Pair | None:
    """The scene's file of this pattern, paired with the scene's image; None if the scene has no image."""
    image = next((path for other, path in scene.items() if not _is_companion(other)), None)
    return Pair(path=scene[pattern], inner=scene[pattern], base="", image=image) if image else None


def _report(scenes: Sequence[Scene], findings: Findings) -> None:
    """Warns that all files of the scenes are used."""
    counts = Counter(pattern for scene in scenes if len(scene) > 1 for pattern in scene)
    companions = [pattern for pattern in counts if _is_companion(pattern)]
    if not companions or len(counts) > _MOST_PATTERNS:
        return
    each = ", ".join(f"{count} {pattern}" for pattern, count in counts.items())
    if len(companions) == len(counts):
        companions = companions[1:]  # something has to remain
    message = f"several images of each scene, to judge by the names ({each}), and all are used"
    findings.warn(f"{message}: data.without='[{','.join(companions)}]' leaves out those that you don't want")
