"""Files of one scene that are told apart by a word at the end or at the front of their names: 0_sat.jpg and 0_mask.png,
img_1.jpg and mask_1.png, wall_albedo.png, wall_normal.png and wall_roughness.png."""

import posixpath
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ldm.data.folders.mask_pixels import NAMED, Pair, evidence_within
from ldm.data.reading.beside import stem
from ldm.data.reading.sample import Seen
from ldm.data.reading.store import Store

# Words for what is about an image.
_WORDS = (
    "mask masks label labels seg segm segmentation gt groundtruth annotation anno parsing trimap matte alpha instance "
    "semantic depth disparity disp flow edge edges canny normal normals albedo basecolor roughness metallic metalness "
    "ao height displacement specular emissive opacity"
)
_ABOUT = frozenset(_WORDS.split())
_LAST = re.compile(r"(?P<core>.+)(?P<mark>[-_. ][a-z]+([-_ ]?\d+k?)?)")  # also normal_2k
_FIRST = re.compile(r"(?P<mark>[a-z]+[-_. ]?)(?P<core>.*\d.*)")
_WORD = re.compile(r"\*?[-_. ]?([a-z]+).*")
_MOST, _LOOKED_AT = 12, 1000  # marks, files
Scene = dict[str, str]  # files by their mark, as a pattern of names


def marked(store: Store, images: Sequence[str], seen: Seen) -> dict[str, str]:
    """Those of `images` that are masks and the like of others of their scene, by their pixels too, with the reason.

    `seen` is told of sets that are all taken.
    """
    scenes = _scenes(images)
    if not scenes or 2 * sum(map(len, scenes)) < len(images):
        return {}
    left: dict[str, str] = {}
    for mark in sorted({mark for scene in scenes for mark in scene if _is_about(mark)}):
        pairs = [pair for scene in scenes if mark in scene and (pair := _pair(scene, mark))]
        by_name = f"named {mark}, beside images of the same name"
        if evidence := evidence_within(store, pairs, False, by_name):
            left |= {scene[mark]: f"{evidence} ({NAMED})" for scene in scenes if mark in scene}
    _tell([{m: path for m, path in scene.items() if path not in left} for scene in scenes], seen)
    return left


def _scenes(images: Sequence[str]) -> list[Scene]:
    """Sets of two files or more, some of whose marks are words for what is about an image."""
    some = random.Random(0).sample(images, min(len(images), _LOOKED_AT))  # of a million, most have none
    if not any(_is_about(mark) for path in some for _, mark in _marks(path)):
        return []
    found: dict[tuple[str, ...], Scene] = defaultdict(dict)
    for path in images:
        for key, mark in _marks(path):
            found[key].setdefault(mark, path)
    return [scene for scene in found.values() if len(scene) > 1 and any(map(_is_about, scene))]


def _marks(path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The folder and the scene's name, with the mark as a pattern of names."""
    folder, name = posixpath.split(stem(path).lower())
    if match := _LAST.fullmatch(name):
        yield (folder, match["core"], "*"), f"*{match['mark']}.*"
    if match := _FIRST.fullmatch(name):
        yield (folder, "*", match["core"]), f"{match['mark']}*"


def _is_about(mark: str) -> bool:
    match = _WORD.fullmatch(mark)
    return match is not None and match[1] in _ABOUT


def _pair(scene: Mapping[str, str], mark: str) -> Pair | None:
    """The file with an image of its scene."""
    image = next((path for other, path in scene.items() if not _is_about(other)), None)
    return Pair(scene[mark], scene[mark], "", image) if image else None


def _tell(scenes: Sequence[Scene], seen: Seen) -> None:
    counts = Counter(mark for scene in scenes if len(scene) > 1 for mark in scene)
    about = [mark for mark in counts if _is_about(mark)]
    if about and len(counts) <= _MOST:
        each = ", ".join(f"{count} {mark}" for mark, count in counts.items())
        about = about[len(about) == len(counts) :]  # not all
        said = f"images are named as several of one scene ({each}), and all are taken"
        seen.note(f"{said}: data.without='[{','.join(about)}]' leaves out those that aren't meant")
