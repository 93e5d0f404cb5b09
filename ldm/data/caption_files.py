"""Files beside images that hold their captions: which they are, what in them is a caption, and their words."""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldm.data.beside import ending, is_image, stem
from ldm.data.embedded import text_in
from ldm.data.sample import USUAL, Sample, Seen, Text, joined, plural, some, text_of
from ldm.data.store import Store, composed
from ldm.errors import UserError

KINDS = (".txt", ".caption", ".cap", ".json")  # the first that an image has is read
_LOOKED_AT = 16  # files of a kind that say what the kind holds
_BLANKS = 64  # bytes that an empty caption's file may have
_TAGS = ("tag_string", "tags")  # as image boards have them
_NUMBER = r"-?\d+(\.\d*)?(e[-+]?\d+)?"
_GAP = r"(\s*[,;]\s*|\s+)"
# YOLO's class and box; also SROIE's and ICDAR's box before its words, DOTA's before its class
_BOX = re.compile(rf"{_NUMBER}({_GAP}{_NUMBER}){{3,}}({_GAP}.*)?", re.IGNORECASE)
_HEADER = re.compile(r"(imagesource|gsd)\s*:.*", re.IGNORECASE)  # DOTA's
_MOSTLY = 0.7  # of a line's words that are numbers: KITTI's begin with a class
_LEAST = 4  # numbers of a box


def find_captions(samples: Sequence[Sample], store: Store, seen: Seen) -> None:
    """Gives each sample the file that holds its caption: NAME.txt or NAME.caption, in any case, NAME.png.txt, or
    NAME.json with a caption among what it says."""
    others = _by_kind(store.entries)
    found: dict[str, list[str]] = defaultdict(list)
    doubled: dict[str, list[str]] = defaultdict(list)
    for kind in KINDS:
        beside = _beside(samples, kind, others[kind], store)
        if not beside or not _is_read(kind, [path for path in beside if path], store, seen):
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
    for kind in KINDS[:-1]:
        paths = [path for sample in images if (path := stem(sample.image) + kind) in store.entries]
        if not paths:
            continue
        seen.pass_over(paths, "beside an image that has a caption in the metadata")
        said = f"{plural(len(paths), f'{kind} file')} beside images that have a caption in the metadata"
        seen.note(f"{said}, which is taken instead: {some(paths)}")


def read_caption(store: Store, path: str) -> Text:
    """The caption in a file, its line ends as Unix has them; of a .json, what it calls so, and of an
    image, what is in it. Raises UserError."""
    if is_image(path):
        return text_in(io.BytesIO(store.read(path)))
    text = store.text(path)
    if ending(path) == KINDS[-1]:
        return caption_in(_json(f"{store.where}/{path}", text))
    return re.sub(r"\r\n?", "\n", text).strip()


def caption_in(row: Mapping[str, Any]) -> Text:
    """The first caption among what a row says, by the usual names, or its tags."""
    found = next((text for key in USUAL["text"] if (text := text_of(row.get(key))[0])), None)
    return found or next((text for key in _TAGS if (text := joined(text_of(row.get(key))[0]))), None)


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
        by_name = {composed(path).lower(): path for path in files}
        for i, path in enumerate(found):
            if path is None:
                image = composed(samples[i].image).lower()
                found[i] = by_name.get(stem(image) + kind) or by_name.get(image + kind)
    return found if any(found) else []


def _is_read(kind: str, paths: Sequence[str], store: Store, seen: Seen) -> bool:
    """Whether files of the kind hold captions, by a few of them; if not, that is noted."""
    texts = {path: text for path in paths[:: -(-len(paths) // _LOOKED_AT)] if (text := _peek(store, path))}
    if kind == KINDS[-1]:
        return any(_has_caption(text) for text in texts.values())
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


def _has_caption(text: str) -> bool:
    try:
        return bool(caption_in(_json("", text)))
    except UserError:
        return False


def _json(where: str, text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON ({error}): fetch it again, or remove it.") from None
    return row if isinstance(row, Mapping) else {}


def _tell_doubled(kind: str, paths: Sequence[str], seen: Seen) -> None:
    seen.pass_over(paths, "beside an image that has another caption file")
    said = f"{plural(len(paths), f'{kind} file')} beside images that have another caption file, which is taken instead"
    if kind == KINDS[-1]:  # img2dataset writes both, and the caption is in both
        seen.aside(f"{said}: {some(paths)}")
    else:
        seen.note(f"{said}: {some(paths)}")
