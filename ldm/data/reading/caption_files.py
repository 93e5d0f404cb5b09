"""Files beside images that hold their captions: which they are, what in them is a caption, and their words."""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ldm.common.errors import UserError
from ldm.data.reading.beside import ending, is_image, stem
from ldm.data.reading.caption_json import OURS, caption_in, hold_captions, row_of
from ldm.data.reading.embedded import text_in
from ldm.data.reading.sample import Sample, Seen, Text, plural, some
from ldm.data.reading.store import Store, composed

JSON = ".json"
TEXTS = (".txt", ".caption", ".cap")
KINDS = (*TEXTS, JSON)  # the first that an image has is read
_LOOKED_AT = 16  # files of a kind that say what the kind holds
_BLANKS = 64  # bytes that an empty caption's file may have
_SUPPLEMENT = re.compile(r"(?P<name>.+\.\w+)\.(?P<word>s[a-z-]*)(?P<copy>\(\d+\))?\.json")
_NUMBER = r"-?\d+(\.\d*)?(e[-+]?\d+)?"
_GAP = r"(\s*[,;]\s*|\s+)"
# YOLO's class and box; also SROIE's and ICDAR's box before its words, DOTA's before its class
_BOX = re.compile(rf"{_NUMBER}({_GAP}{_NUMBER}){{3,}}({_GAP}.*)?", re.IGNORECASE)
_HEADER = re.compile(r"(imagesource|gsd)\s*:.*", re.IGNORECASE)  # DOTA's
_MOSTLY = 0.7  # of a line's words that are numbers: KITTI's begin with a class
_LEAST = 4  # numbers of a box


def find_captions(samples: Sequence[Sample], store: Store, seen: Seen, name: str = OURS) -> None:
    """Gives each sample the file that holds its caption: NAME.txt or NAME.caption, in any case, NAME.png.txt, or
    NAME.json with a caption among what it says, by the `name` that the user gives, which is then read first."""
    others = _by_kind(store.entries)
    found: dict[str, list[str]] = defaultdict(list)
    doubled: dict[str, list[str]] = defaultdict(list)
    for kind in KINDS if name == OURS else (JSON, *TEXTS):
        beside = _beside(samples, kind, others[kind], store)
        paths = [path for path in beside if path]
        if not paths or not _is_read(kind, paths, store, seen, name):
            continue
        for sample, path in zip(samples, beside, strict=True):
            if path and sample.caption:
                doubled[kind].append(path)
            elif path:
                sample.caption = path
                found[kind].append(path)
    if found:
        each = ", ".join(plural(len(paths), f"{kind} file") for kind, paths in found.items())
        seen.aside(f"captions come from {each}")
    for kind, paths in doubled.items():
        _tell_doubled(kind, paths, seen)


def unread_captions(samples: Iterable[Sample], store: Store, seen: Seen) -> None:
    """Notes the caption files of samples whose caption is known from elsewhere."""
    images = list(samples)
    for kind in TEXTS:
        paths = [path for sample in images if (path := stem(sample.image) + kind) in store.entries]
        if not paths:
            continue
        seen.pass_over(paths, "beside an image that has a caption in the metadata")
        said = f"{plural(len(paths), f'{kind} file')} beside images that have a caption in the metadata"
        seen.note(f"{said}, which is taken instead: {some(paths)}")


def read_caption(store: Store, path: str, name: str = OURS) -> Text:
    """The caption in a file, its line ends as Unix has them; of a .json, what it calls so or by `name`, and of an
    image, what is in it. Raises UserError."""
    if is_image(path):
        return text_in(io.BytesIO(store.read(path)))
    text = store.text(path)
    if ending(path) == JSON:
        return caption_in(row_of(f"{store.where}/{path}", text), name)
    return re.sub(r"\r\n?", "\n", text).strip()


def _by_kind(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files of each kind."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for path in paths:
        if (kind := ending(path)) in found:
            found[kind].append(path)
    return found


def _beside(samples: Sequence[Sample], kind: str, files: Sequence[str], store: Store) -> list[str | None]:
    """For each sample its file of the kind; empty if there is none of it."""
    if not files:
        return []
    exact = [stem(sample.image) + kind for sample in samples]
    found = [path if path in store.entries else None for path in exact]
    if None in found:  # in a spelling that all agree on
        by_name = {_supplemented(composed(path).lower()): path for path in files}
        for i, path in enumerate(found):
            if path is None:
                image = composed(samples[i].image).lower()
                found[i] = by_name.get(stem(image) + kind) or by_name.get(image + kind)
    return found if any(found) else []


def _supplemented(path: str) -> str:
    """Google's `a.jpg.supplemental-metadata.json`, cut or not, as `a.jpg.json`, and `a.jpg.suppl(1).json` so."""
    match = _SUPPLEMENT.fullmatch(path)
    if not match or not "supplemental-metadata".startswith(match["word"]):
        return path
    return f"{stem(match['name'])}{match['copy'] or ''}{ending(match['name'])}{JSON}"


def _is_read(kind: str, paths: Sequence[str], store: Store, seen: Seen, name: str) -> bool:
    """Whether files of the kind hold captions, by a few of them; if not, that is noted."""
    if kind == JSON:
        return hold_captions(store, paths, name, seen)
    texts = {path: text for path in paths[:: -(-len(paths) // _LOOKED_AT)] if (text := _peek(store, path))}
    if not any(texts.values()) and all(_is_empty(store, path) for path in paths):
        seen.pass_over(paths, "empty")
        seen.note(
            f"{plural(len(paths), f'{kind} file')} beside images, and nothing in any: no captions ({some(paths)})"
        )
        return False
    boxes = [path for path, text in texts.items() if _is_boxes(text)]
    if not boxes:
        return True
    if len(boxes) < len(texts):
        seen.note(f"some {kind} files hold lines of numbers, as YOLO's boxes, and are read as captions: {some(boxes)}")
        return True
    seen.pass_over(paths, "boxes, as YOLO, DOTA, KITTI and SROIE have them")
    said = f"{plural(len(paths), f'{kind} file')} beside images hold boxes, as YOLO, DOTA, KITTI and SROIE have them,"
    said = f"{said} and no captions"
    seen.note(f"{said}: they aren't read ({some(paths)})")
    return False


def _peek(store: Store, path: str) -> str:
    """The file's text; nothing where it can't be read, which is told when all are."""
    try:
        return store.text(path).strip()
    except UserError:
        return ""


def _is_empty(store: Store, path: str) -> bool:
    """Whether nothing but blanks is there; a file that can't be read is told when all are."""
    try:
        return store.entries[path][0] <= _BLANKS and not store.text(path).strip()
    except UserError:
        return False


def _is_boxes(text: str) -> bool:
    lines = [line.strip() for line in text.split("\n") if line.strip() and not _HEADER.fullmatch(line.strip())]
    return bool(lines) and all(_BOX.fullmatch(line) or _is_mostly_numbers(line) for line in lines)


def _is_mostly_numbers(line: str) -> bool:
    words = re.split(r"[\s,;]+", line)
    numbers = sum(re.fullmatch(_NUMBER, word, re.IGNORECASE) is not None for word in words)
    return numbers >= max(_LEAST, _MOSTLY * len(words))


def _tell_doubled(kind: str, paths: Sequence[str], seen: Seen) -> None:
    seen.pass_over(paths, "beside an image that has another caption file")
    said = f"{plural(len(paths), f'{kind} file')} beside images that have another caption file, which is taken instead"
    if kind == JSON:  # img2dataset writes both, and the caption is in both
        seen.aside(f"{said}: {some(paths)}")
    else:
        seen.note(f"{said}: {some(paths)}")
