"""Copies and edits of an image, by names that systems and programs give them: IMG_1 (1).jpg, IMG_1-Edit.tif."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.sample import Sample

MOST = 4  # numbered copies of an image; with more, numbers tell different images apart: "download (17).jpg"
_COPY = r"copy|kopie|kopia|kopi|copie|copia|cópia|copi|コピー|副本|копия"
_EDIT = (
    r"edit(ed|s)?|bearbeitet|modifi[ée]e?|editad[ao]|modificat[ao]|bewerkt|effects|enhanced(-nr)?|retouch(ed)?|crop(ped)?"
    r"|resized?|scaled|rotated?|flip(ped)?|mirror(ed)?|upscaled?|hdr|orig(inal)?|cover|portrait|night|mp|animation"
)
_WORDS = (  # each with the image's own name as `core`
    rf"(?P<core>.+?)[-_ ]+(- )?({_COPY})([-_ ]?\(?\d+\)?)?",  # Windows' and macOS' copies
    rf"({_COPY})( \(\d+\))? (of|von|de|di|van) (?P<core>.+)",  # Copy of IMG_1
    rf"(?P<core>.+?)[-_. ]\(?({_EDIT})\)?([-_ ]?\d+)?",  # Lightroom's, Google's
    r"(?P<core>.+)-\d{2,5}x\d{2,5}",  # WordPress' sizes
    r"(?P<core>.+)@[234]x",
    r"(?P<core>.+)~\d",  # Android's
    r"(?P<core>.+?) \(.*(conflict|konflikt|conflit|conflicto).*\)",  # Dropbox' and others'
    r"(?P<core>.+)\.sync-conflict-.+",
)
_NUMBERED = re.compile(r"(?P<core>.*[^ ]) ?\(\d{1,2}\)")
_EDITS = [re.compile(words) for words in _WORDS]
_APPLE = re.compile(r"img_e(?P<number>\d{4,})")  # an iPhone's IMG_E0001, edited from IMG_0001
# Versions of one image that have a name in common, of which none need have it alone.
_SHARED = [
    re.compile(words)
    for words in (
        r"(?P<core>.+)\.rf\.[0-9a-z]{3,}",  # Roboflow's augmentations
        r"(?P<core>.+_burst)\d{3}(_cover)?",  # a phone's burst
        r"\d{5}img_\d{5}_(?P<core>burst\d{6,})(_cover)?",
    )
]


# At least one of these is in each such name. Most data sets have none, and looking for them is fast.
_HINTS = (
    "( ~ @ img_e .rf. burst copy copi kopi cópia コピー 副本 копия edit bearbeitet modifi bewerkt effects enhanced "
    "retouch crop resize scale rotate flip mirror hdr orig cover portrait night mp animation "
    "conflict"
)
_SIZE = re.compile(r"\dx\d")


def with_edits_as_one(
    samples: Sequence[Sample], image_of: Callable[[str], str], findings: Findings
) -> Callable[[str], str]:
    """`image_of`, but with one name for an image and its copies and edits in the same folder.

    They count as such only if the image itself is in that folder; bursts and Roboflow's augmentations need no such
    image. The result is `image_of` itself if nothing could be held out for validation otherwise.
    """
    own = dict.fromkeys(image_of(sample.image) for sample in samples)
    first = _first_names(list(own))
    if not first:
        return image_of
    labels: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        name = image_of(sample.image)
        labels[str(sample.label)].add(first.get(name, name))
    if max(map(len, labels.values())) < 2:
        return image_of
    pairs = [f"{name} beside {other}" for name, other in first.items()]
    message = f"{plural(len(first), 'image')} named like copies, edits or bursts of others ({examples(pairs)})"
    findings.remark(f"{message}: they stay on one side of the split")
    return lambda path: first.get(name := image_of(path), name)


def _first_names(names: Sequence[str]) -> dict[str, str]:
    """Maps the name of each copy or edit to the name of its image."""
    spelled = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    shared: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in _likely(names):
        if core := _shared(name):
            found[name] = shared.setdefault(core, name)
        elif (other := _original(name.lower(), spelled)) and other[0] != name:
            found[name] = other[0]
            counts[other[0]] += other[1]
    found = {name: other for name, other in found.items() if other != name}
    return {name: other for name, other in found.items() if counts[other] <= MOST or not _is_numbered(name)}


def _likely(names: Sequence[str]) -> list[str]:
    """The names that look like those of copies and edits."""
    text = "\n".join(names).lower()
    hints = [hint for hint in _HINTS.split() if hint in text]
    if not hints and not _SIZE.search(text):
        return []
    return [name for name in names if any(hint in name.lower() for hint in hints) or _SIZE.search(name.lower())]


def _original(name: str, spelled: Mapping[str, str]) -> tuple[str, bool] | None:
    """The image of which `name` is a copy or an edit, and whether `name` is numbered. If several names of images remain
    when words for copies and edits are removed, it is the shortest."""
    folder, last = posixpath.split(name)
    best, waiting, seen = None, [last], {last}
    while waiting:
        for core in _cores(waiting.pop()):
            if core not in seen:
                seen.add(core)
                waiting.append(core)
                path = posixpath.join(folder, core)
                if path in spelled and (best is None or len(path) < len(best)):
                    best = path
    return (spelled[best], _is_numbered(name)) if best else None


def _cores(name: str) -> Iterator[str]:
    if match := _APPLE.fullmatch(name):
        yield f"img_{match['number']}"
    yield from (match["core"] for pattern in (*_EDITS, _NUMBERED) if (match := pattern.fullmatch(name)))


def _shared(name: str) -> str | None:
    """What a version's name has in common with those of other versions."""
    folder, last = posixpath.split(name.lower())
    core = next((match["core"] for pattern in _SHARED if (match := pattern.fullmatch(last))), None)
    return core and posixpath.join(folder, core)


def _is_numbered(name: str) -> bool:
    return _NUMBERED.fullmatch(name) is not None
