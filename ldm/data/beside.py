"""What lies beside images: captions, what is about images and no image of the set, and what isn't read at all."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from ldm.data.sample import Sample, Seen, plural
from ldm.images import IMAGES

CAPTIONS = (".txt", ".caption", ".cap")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")  # files that may be meant as metadata
# Formats of images that nothing here reads, and what to do.
_CONVERT = "can't be read: convert them to .jpg or .png"
_RAW = "are a camera's raw data: develop them to .jpg, .png or .tif"
_FILM = "are films: take images out of them"
UNREADABLE = {
    **dict.fromkeys(
        (".heic", ".heif", ".hif", ".jxl", ".psd", ".xcf", ".exr", ".hdr", ".svg", ".ico", ".eps"), _CONVERT
    ),
    **dict.fromkeys((".pdf", ".djvu"), "are documents: export their pages as .png or .jpg"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"), _RAW),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp"), _FILM),
}
_NOBODYS = re.compile(
    r"(readme|licen[sc]e|copying|citation|notice|changelog|thumbs\.db|desktop\.ini|manifest)\b.*", re.I
)
# Folders whose images programs make.
_JUNK = {"__macosx", "@eadir", "thumbs", "thumbnails", "thumbnail", "$recycle.bin", "lost+found"}
# Folders that hold something about the images beside them, if their files go by those images' names.
_ABOUT = re.compile(
    r"(.*[-_ ])?(masks?|maps?|seg|segmentations?|segmaps?|labels?|annotations?|gt|ground[-_ ]?truths?|depths?|normals?"
    r"|edges?|canny|hints?|controls?|conditions?|conditioning|trimaps?|mattes?|alphas?|captions?|previews?)",
    re.IGNORECASE,
)
_MARKS = "mask|masklabel|condlabel|map|seg|segmentation|depth|canny|control|matte|alpha|thumb|thumbnail"
_ABOUT_MARK = re.compile(_MARKS, re.IGNORECASE)
_ABOUT_FILE = re.compile(rf"(?P<stem>.+?)[-_. ]({_MARKS})([-_ ]?\d+)?", re.IGNORECASE)


def is_image(path: str) -> bool:
    return ending(path) in IMAGES


def ending(path: str) -> str:
    """In small letters, with its dot; of a million paths in a second."""
    dot = path.rfind(".")
    return path[dot:].lower() if dot > path.rfind("/") + 1 else ""


def stem(path: str) -> str:
    """The path without its ending."""
    return path[: len(path) - len(ending(path))]


def is_junk(path: str) -> bool:
    return any(step.lower() in _JUNK for step in path.split("/")[:-1])


def own_images(paths: Sequence[str], seen: Seen) -> list[str]:
    """The images among `paths` that are samples: not masks and the like that go by another's name, not what programs
    leave behind. Where nothing else is there, these are meant."""
    images = [path for path in paths if is_image(path)]
    left = {path: "in folders that programs make" for path in images if is_junk(path)}
    left |= _files_about([path for path in images if path not in left])
    left |= _folders_about([path for path in images if path not in left])
    if not left or len(left) == len(images):
        return images
    seen.left_out |= left
    return [path for path in images if path not in left]


def find_captions(samples: Sequence[Sample], paths: Collection[str], seen: Seen) -> None:
    """Gives each sample the file among `paths` that holds its caption: NAME.txt or NAME.caption, in any case, or
    NAME.png.txt."""
    left = []
    for sample in samples:
        exact = stem(sample.image) + CAPTIONS[0]
        sample.caption = exact if exact in paths else None
        left += [] if sample.caption else [sample]
    files = {path.lower(): path for path in paths if ending(path) in CAPTIONS} if left else {}
    for sample in left:
        image = sample.image.lower()
        names = [name + kind for kind in CAPTIONS for name in (stem(image), image)]
        sample.caption = next((files[name] for name in names if name in files), None)
    kinds = Counter(ending(sample.caption) for sample in samples if sample.caption)
    if kinds:
        seen.aside("captions come from " + ", ".join(f"{n} {kind} files" for kind, n in kinds.items()))


def tell_unread(paths: Sequence[str], seen: Seen) -> None:
    """Notes by kind which of `paths`, that nothing has read, aren't images."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if not is_image(path) and not is_junk(path) and not _NOBODYS.fullmatch(posixpath.basename(path)):
            kinds[ending(path)].append(path)
    for kind in [kind for kind in kinds if kind in UNREADABLE]:
        seen.leave(kinds.pop(kind), f"{kind} files {UNREADABLE[kind]}")
    tables = [path for kind in TABLES for path in kinds.pop(kind, [])]
    if tables:
        more = f" ({len(tables)} such files)" if len(tables) > 1 else ""
        seen.note(f"{tables[0]} isn't read{more}: captions and labels come from metadata.jsonl or metadata.csv")
    if kinds:
        each = ", ".join(f"{plural(len(of), f'{kind} file'.strip())} ({of[0]})" for kind, of in kinds.items())
        seen.note(f"not read: {each}; captions come from NAME.txt or NAME.caption beside NAME.png")


def _files_about(images: Sequence[str]) -> dict[str, str]:
    """`cat-masklabel.png` beside `cat.jpg`, as OneTrainer has it, `cat_mask.png` and the like."""
    stems = {stem(path).lower() for path in images}
    left = {}
    for path in images:
        match = _ABOUT_FILE.fullmatch(stem(path)) if _ABOUT_MARK.search(path) else None
        if match and match["stem"].lower() in stems:
            left[path] = "named as masks and the like of the images beside them (metadata.jsonl can name them so)"
    return left


def _folders_about(images: Sequence[str]) -> dict[str, str]:
    """What lies in masks/ and goes by the names of the images in images/."""
    by_folder: Mapping[str, list[str]] = defaultdict(list)
    for path in images:
        step = next((step for step in path.split("/")[:-1] if _ABOUT.fullmatch(step)), None)
        by_folder[step or ""].append(path)
    if len(by_folder) < 2:
        return {}
    stems = {_stem(path) for path in by_folder[""]}
    left: dict[str, str] = {}
    for folder, inside in by_folder.items():
        if folder and 2 * sum(_stem(path) in stems for path in inside) >= len(inside):
            reason = (
                f"in {folder}/, by the names of the images beside it (metadata.jsonl can name them as masks and so on)"
            )
            left |= dict.fromkeys(inside, reason)
    return left


def _stem(path: str) -> str:
    """The name without its ending and without a mark that says what the file is."""
    name = stem(posixpath.basename(path))
    match = _ABOUT_FILE.fullmatch(name)
    return (match["stem"] if match else name).lower()
