"""Caption files beside images: which they are, whether they hold captions, and the captions in them."""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ldm.common.errors import UserError
from ldm.data.reading.captions.embedded import text_in, text_in_xmp
from ldm.data.reading.captions.json_files import OURS, caption_in, hold_captions, row_of
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import ending, evenly_spaced, is_image, stem
from ldm.data.reading.sample import Sample, Text
from ldm.data.reading.store import Store, composed

JSON = ".json"
XMP = ".xmp"  # beside the images, as Lightroom, digiKam and darktable write it
TEXTS = (".txt", ".caption", ".cap")
KINDS = (*TEXTS, JSON, XMP)  # in this order; the first that an image has is read
_LOOKED_AT = 16  # files of a kind, by which the kind is judged
_BLANKS = 64  # bytes of spaces and line ends that an empty caption file may hold
_SUPPLEMENT = re.compile(r"(?P<name>.+\.\w+)\.(?P<word>s[a-z-]*)(?P<copy>\(\d+\))?\.json")
_NUMBER = r"-?\d+(\.\d*)?(e[-+]?\d+)?"
_GAP = r"(\s*[,;]\s*|\s+)"
# YOLO's class and box; also SROIE's and ICDAR's box followed by text, DOTA's followed by a class
_BOX = re.compile(rf"{_NUMBER}({_GAP}{_NUMBER}){{3,}}({_GAP}.*)?", re.IGNORECASE)
_HEADER = re.compile(r"(imagesource|gsd)\s*:.*", re.IGNORECASE)  # DOTA's
_MOSTLY = 0.7  # the share of numbers among a line's words: KITTI's lines begin with a class
_LEAST = 4  # numbers of a box


def find_captions(samples: Sequence[Sample], store: Store, findings: Findings, name: str = OURS) -> None:
    """Gives each sample the file that holds its caption: NAME.txt, NAME.caption or NAME.cap, regardless of case,
    NAME.png.txt, a NAME.json that contains a caption, or a NAME.xmp that contains a description, title or keywords.

    If the user gives the `name` of the caption in NAME.json, these files are preferred.
    """
    files = _by_kind(store.entries)
    found: dict[str, list[str]] = defaultdict(list)
    second: dict[str, list[str]] = defaultdict(list)
    for kind in KINDS if name == OURS else (JSON, *TEXTS, XMP):
        beside = _beside(samples, kind, files[kind], store)
        paths = [path for path in beside if path]
        if not paths or not _hold_captions(kind, paths, store, findings=findings, name=name):
            continue
        for sample, path in zip(samples, beside, strict=True):
            if path and sample.caption:
                second[kind].append(path)
            elif path:
                sample.caption = path
                found[kind].append(path)
    if found:
        each = ", ".join(plural(len(paths), f"{kind} file") for kind, paths in found.items())
        findings.remark(f"captions come from {each}")
    for kind, paths in second.items():
        _report_second_captions(kind, paths, findings)


def report_unread_captions(samples: Iterable[Sample], store: Store, findings: Findings) -> None:
    """Warns of caption files beside samples whose captions are in the metadata."""
    images = list(samples)
    for kind in TEXTS:
        paths = [path for sample in images if (path := stem(sample.image) + kind) in store.entries]
        if not paths:
            continue
        findings.mark_unread(paths, "whose image has a caption in the metadata")
        files = plural(len(paths), f"{kind} file")
        findings.warn(f"{files} not read, since the images have captions in the metadata: {examples(paths)}")


def read_caption(store: Store, path: str, name: str = OURS) -> Text:
    """The caption in a text file, with Unix line ends, in a .json file (`name`: see `caption_in`), in an .xmp file, or
    inside an image file. Raises UserError."""
    if is_image(path):
        return text_in(io.BytesIO(store.read(path)))
    text = store.text(path)
    if ending(path) == JSON:
        return caption_in(row_of(f"{store.where}/{path}", text), name)
    if ending(path) == XMP:
        return text_in_xmp(text)
    return re.sub(r"\r\n?", "\n", text).strip()


def _by_kind(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files of each kind."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for path in paths:
        if (kind := ending(path)) in found:
            found[kind].append(path)
    return found


def _beside(samples: Sequence[Sample], kind: str, files: Sequence[str], store: Store) -> list[str | None]:
    """Each sample's file of the kind; empty if no sample has one."""
    if not files:
        return []
    exact = [stem(sample.image) + kind for sample in samples]
    found = [path if path in store.entries else None for path in exact]
    if None in found:  # compare in lower case and composed Unicode
        by_name = {_without_supplement(composed(path).lower()): path for path in files}
        for i, path in enumerate(found):
            if path is None:
                image = composed(samples[i].image).lower()
                found[i] = by_name.get(stem(image) + kind) or by_name.get(image + kind)
    return found if any(found) else []


def _without_supplement(path: str) -> str:
    """The usual name for a name of Google's: `a.jpg.json` for `a.jpg.supplemental-metadata.json`, whose words may be
    cut off, and `a(1).jpg.json` for a copy's `a.jpg.suppl(1).json`."""
    match = _SUPPLEMENT.fullmatch(path)
    if not match or not "supplemental-metadata".startswith(match["word"]):
        return path
    return f"{stem(match['name'])}{match['copy'] or ''}{ending(match['name'])}{JSON}"


def _hold_captions(kind: str, paths: Sequence[str], store: Store, *, findings: Findings, name: str) -> bool:
    """Whether files of the kind hold captions, judged by a few of them; warns if they don't."""
    if kind == JSON:
        return hold_captions(store, paths, name, findings)
    files = plural(len(paths), f"{kind} file")
    if kind == XMP:
        return _hold_xmp(paths, store, findings)
    texts = {path: text for path in evenly_spaced(paths, _LOOKED_AT) if (text := _peek(store, path))}
    if not any(texts.values()) and all(_is_empty(store, path) for path in paths):
        findings.mark_unread(paths, "empty")
        findings.warn(f"{files} beside images are all empty and give no captions ({examples(paths)})")
        return False
    boxes = [path for path, text in texts.items() if _is_boxes(text)]
    if not boxes:
        return True
    if len(boxes) < len(texts):
        findings.warn(f"some {kind} files hold lines of numbers, like YOLO's boxes, and are read as captions: "
                      f"{examples(boxes)}")  # fmt: skip
        return True
    findings.mark_unread(paths, "boxes, as in YOLO, DOTA, KITTI and SROIE")
    findings.warn(f"{files} beside images hold boxes, as in YOLO, DOTA, KITTI and SROIE, and no captions: they aren't "
                  f"read ({examples(paths)})")  # fmt: skip
    return False


def _hold_xmp(paths: Sequence[str], store: Store, findings: Findings) -> bool:
    """Whether .xmp files hold captions, judged by a few of them; a remark if they don't, as many hold only settings."""
    if any(text_in_xmp(_peek(store, path)) for path in evenly_spaced(paths, _LOOKED_AT)):
        return True
    findings.mark_unread(paths, "XMP without a description, title or keywords")
    files = plural(len(paths), f"{XMP} file")
    findings.remark(
        f"{files} beside images have no description, title or keywords and give no captions ({examples(paths)})"
    )
    return False


def _peek(store: Store, path: str) -> str:
    """The file's text; empty if it can't be read, which is reported when all files are read."""
    try:
        return store.text(path).strip()
    except UserError:
        return ""


def _is_empty(store: Store, path: str) -> bool:
    """Whether a file holds nothing but spaces. One that can't be read is reported when all files are read."""
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


def _report_second_captions(kind: str, paths: Sequence[str], findings: Findings) -> None:
    findings.mark_unread(paths, "whose image has another caption file")
    files = plural(len(paths), f"{kind} file")
    message = f"{files} not read, since the images have another caption file: {examples(paths)}"
    if kind == JSON:  # img2dataset writes the caption to both
        findings.remark(message)
    else:
        findings.warn(message)
