"""What lies beside images: captions, what is about images and no image of the set, and what isn't read at all."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence

from ldm.data.reading.sample import Seen, plural, some
from ldm.data.reading.store import Store
from ldm.images import IMAGES

_KINDS = 6  # of files that aren't read, in one line
PARQUET = ".parquet"
TABLES = (".csv", ".tsv", ".json", ".jsonl", PARQUET, ".xlsx")  # files that may be meant as metadata
# Formats of images that nothing here reads, and what to do.
_CONVERT = "can't be read: convert them to .jpg or .png"
_MEDICAL = "are medical or scientific data that aren't read: export them as .png, .tif or .npy"
_DICOM, TIFF = "DICOM", ".tif"
_LIKE_TIFF = (
    "TIFF by their content, as plain images are and cameras' and microscopes' own data: rename them to .tif if they "
    "are plain, else export them as .tif or .png"
)
_PARTLY = "are downloads that haven't finished: fetch them again"
_RAW = "are a camera's raw data: develop them to .jpg, .png or .tif"
_FILM = "are films: take images out of them"
_PACKED = "are archives, which aren't looked into: unpack them (a single .zip can be data.root itself)"
_SHARD = "are archives, which aren't looked into: unpack them, or read WebDataset's by data=shards"
_OTHERS = ".heic .heif .hif .livp .jxl .psd .psb .xcf .kra .clip .exr .hdr .svg .ai .ico .icns .eps .dds .dpx .jxr"
_CAMERAS = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .ori .pef .raf "
    ".rw2 .rwl .sr2 .srf .srw .x3f"
)
_SCIENCE = (
    ".dcm .dicom .nii .nii.gz .nrrd .nhdr .mha .mhd .mgz .czi .svs .ndpi .scn .mrxs .bif .lsm .lif .nd2 .oib .oif .vsi "
    ".stk .fits .fit .h5 .hdf5 .nc"
)
UNREADABLE = {
    **dict.fromkeys(
        _OTHERS.split(),
        _CONVERT,
    ),
    **dict.fromkeys((".pdf", ".djvu"), "are documents: export their pages as .png or .jpg"),
    **dict.fromkeys(_CAMERAS.split(), _RAW),
    **dict.fromkeys(_SCIENCE.split(), _MEDICAL),
    **dict.fromkeys((".part", ".crdownload", ".partial", ".aria2", ".!ut", ".download"), _PARTLY),
    **dict.fromkeys((".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), _PACKED),
    **dict.fromkeys((".tar", ".tgz"), _SHARD),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp"), _FILM),
}
_STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n": ".png",
    b"GIF8": ".gif",
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
}
_KNOWN = frozenset((*IMAGES, *UNREADABLE, *TABLES, ".txt", ".caption", ".cap", ".xml", ".html", ".npz", ".db", ".ovr"))
_HEAD, _PEEKED = 132, 16  # bytes of a file, files of an ending
_NOBODYS = re.compile(
    r"(readme|licen[sc]e|copying|citation|notice|changelog|thumbs\.db|desktop\.ini|manifest)\b.*", re.I
)
# Folders whose images programs make.
_JUNK = {
    *("__macosx", "@eadir", "thumbs", "thumbnails", "thumbnail", "lost+found", "system volume information"),
    *("$recycle.bin", "#recycle", "@recycle", "#snapshot", "@recently-snapshot"),
}
JUNK = "in folders that programs make"
_JUNK_LIKE = re.compile(r"thumb(nail)?s?[-_ ]?\d+(x\d+)?|.*\.lrdata")  # thumbnails128x128; Lightroom's


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
    steps = path.lower().split("/")[:-1]
    return any(step in _JUNK or _JUNK_LIKE.fullmatch(step) for step in steps)


def tell_passed(store: Store, seen: Seen) -> None:
    """Says what of the store can't be among its files: what is hidden, what is no file, what may not be looked into."""
    seen.left_out |= {path: reason for path, reason in store.passed.items() if not is_junk(path)}
    hidden = [path for path in store.hidden if is_image(path) and not is_junk(path)]
    seen.leave(hidden, "hidden, as a file's or folder's name begins with a dot: rename it to take them")
    if closed := [folder + "/" for folder in store.closed if not is_junk(folder + "/")]:
        said = f"{plural(len(closed), 'folder')} can't be looked into, so what is in there is missing"
        seen.note(f"{said}: {some(closed)}; allow reading there, or move {'it' if len(closed) == 1 else 'them'} away")


def tell_disguised(store: Store, paths: Sequence[str], seen: Seen) -> None:
    """Leaves files out whose content is an image and whose ending isn't: downloads called 1, 1.jpg_large, 1.jpg?w=300.

    Of each ending a few are looked into."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if (kind := ending(path)) not in _KNOWN and not is_junk(path):
            kinds[kind].append(path)
    for found in list(kinds.values())[:_PEEKED]:
        meant = {name for path in found[:_PEEKED] if (name := _content(store, path))}
        if meant == {_DICOM}:
            seen.leave(found, f"{_DICOM} by their content, which {_MEDICAL}")
        elif meant == {TIFF} and re.fullmatch(r"\.[a-z]\w{1,4}", ending(found[0])):
            seen.leave(found, _LIKE_TIFF)
        elif meant:
            seen.leave(found, f"{' or '.join(sorted(meant))} by their content, under another ending: rename them")


def _content(store: Store, path: str) -> str | None:
    try:
        with store.open(path) as file:
            head = file.read(_HEAD)
    except Exception:  # whatever it is, the file is said not to be read
        return None
    if head[128:132] == b"DICM":
        return _DICOM
    if head.startswith(b"RIFF"):
        return ".webp" if head[8:12] == b"WEBP" else None  # .wav and .avi begin so too
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def tell_unread(paths: Sequence[str], seen: Seen) -> None:
    """Notes by kind which of `paths`, that nothing has read, aren't images; each is kept by name."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in [path for path in paths if path not in seen.unread and not is_image(path)]:
        if is_junk(path):
            seen.pass_over([path], JUNK)
        elif _NOBODYS.fullmatch(posixpath.basename(path)):
            seen.pass_over([path], "no data by its name")
        else:
            kinds[".nii.gz" if path.lower().endswith(".nii.gz") else ending(path)].append(path)
    for kind in [kind for kind in kinds if kind in UNREADABLE]:
        seen.leave(kinds.pop(kind), f"{kind} files {UNREADABLE[kind]}")
    tables = [path for kind in TABLES for path in kinds.pop(kind, [])]
    seen.pass_over(tables, "a table by another name than metadata.jsonl or metadata.csv")
    if tables:
        more = f" ({len(tables)} such files)" if len(tables) > 1 else ""
        is_packed = any(ending(path) == PARQUET for path in tables)
        packed = "; data=huggingface data.dataset=PATH reads .parquet" if is_packed else ""
        seen.note(f"{tables[0]} isn't read{more}: captions and labels come from metadata.jsonl or metadata.csv{packed}")
    for kind, of in kinds.items():
        seen.pass_over(of, f"{kind} file of no image".lstrip())
    if kinds:
        each = [f"{plural(len(of), f'{kind} file'.strip())} ({of[0]})" for kind, of in kinds.items()]
        rest = f" and {plural(len(each) - _KINDS, 'more kind')}" if len(each) > _KINDS else ""
        said = f"not read: {', '.join(each[:_KINDS])}{rest}"
        seen.note(f"{said}; captions come from NAME.txt or NAME.caption beside NAME.png")
