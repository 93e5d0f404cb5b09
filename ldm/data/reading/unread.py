"""Files of a data set that aren't read, by kind, and what to do about them."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence

from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import JUNK, ending, is_image, is_junk
from ldm.data.reading.store import Store
from ldm.images import IMAGES

_KINDS = 6  # kinds of unread files that one line names
PARQUET = ".parquet"
TABLES = (".csv", ".tsv", ".json", ".jsonl", PARQUET, ".xlsx")  # files that may hold metadata
# Formats of images that can't be read, and what to do.
_CONVERT = "can't be read: convert them to .jpg or .png"
_MEDICAL = "are medical or scientific data that aren't read: export them as .png, .tif or .npy"
_DICOM, TIFF = "DICOM", ".tif"
_LIKE_TIFF = (
    "TIFF by their content, as ordinary images and the raw data of cameras and microscopes are: rename them to .tif "
    "if they are ordinary images, otherwise export them as .tif or .png"
)
_UNFINISHED = "are downloads that haven't finished: download them again"
_RAW = "are a camera's raw data: develop them to .jpg, .png or .tif"
_VIDEO = "are videos: extract images from them"
_ARCHIVE = "are archives, which aren't opened: unpack them (a single .zip can be data.root itself)"
_ARCHIVES = ".zip .7z .rar .gz .bz2 .xz .zst .cbz .cbr .cb7 .cbt .epub"
_SHARD = "are archives, which aren't opened: unpack them, or read WebDataset shards with data=shards"
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
    **dict.fromkeys(_OTHERS.split(), _CONVERT),
    **dict.fromkeys((".pdf", ".djvu"), "are documents: export their pages as .png or .jpg"),
    **dict.fromkeys(_CAMERAS.split(), _RAW),
    **dict.fromkeys(_SCIENCE.split(), _MEDICAL),
    **dict.fromkeys((".part", ".crdownload", ".partial", ".aria2", ".!ut", ".download"), _UNFINISHED),
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".cbz", ".cbr", ".cb7", ".cbt", ".epub"), _ARCHIVE
    ),
    **dict.fromkeys((".tar", ".tgz"), _SHARD),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp"), _VIDEO),
}
_STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n": ".png",
    b"GIF8": ".gif",
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
}
_KNOWN = frozenset((*IMAGES, *UNREADABLE, *TABLES, ".txt", ".caption", ".cap", ".xml", ".html", ".npz", ".db", ".ovr"))
_HEAD, _LOOKED_AT = 132, 16  # bytes of a file; endings, and files of each
_BACKUP = re.compile(r"\.(jpe?g|png|tiff?|webp|gif|bmp|heic)(_original|~)|\.(bak|orig|old)")  # exiftool's, editors'
_ICLOUD = ".icloud"  # .IMG_1.heic.icloud stands for a file that is only in the cloud
_NO_DATA = re.compile(
    r"(readme|licen[sc]e|copying|citation|notice|changelog|(eh)?thumbs(_vista)?\.db|desktop\.ini|manifest"
    r"|zbthumbnail\.info|picasa\.ini)\b.*|icon\r",
    re.I,
)


def report_unreachable(store: Store, findings: Findings) -> None:
    """Reports what the store can't read: hidden images, what isn't a regular file, and folders without permission."""
    findings.left_out |= {path: reason for path, reason in store.passed.items() if not is_junk(path)}
    hidden = [path for path in store.hidden if is_image(path) and not is_junk(path)]
    waiting = [path for path in store.hidden if ending(path) == _ICLOUD]
    findings.leave_out(waiting, "not downloaded from iCloud: download them in Finder or with brctl download")
    findings.leave_out(hidden, "hidden, since the name of the file or of a folder begins with a dot: rename it")
    if store.own:
        findings.remark(f"runs and caches of ldm in the folder aren't read as data: {examples(sorted(store.own))}")
    if closed := [folder + "/" for folder in store.closed if not is_junk(folder + "/")]:
        message = f"{plural(len(closed), 'folder')} can't be opened, so their content is missing: {examples(closed)}"
        findings.warn(f"{message}; give permission to read, or move {'it' if len(closed) == 1 else 'them'} away")


def report_disguised(store: Store, paths: Sequence[str], findings: Findings) -> None:
    """Leaves out files that are images by content but not by ending: downloads named 1, 1.jpg_large, 1.jpg?w=300.

    A few files of each ending are looked into.
    """
    by_ending: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if (kind := ending(path)) not in _KNOWN and not is_junk(path):
            by_ending[kind].append(path)
    for kind, found in list(by_ending.items())[:_LOOKED_AT]:
        if _BACKUP.fullmatch(kind):
            findings.leave_out(found, "backup copies by their names, which programs make before they change a file")
            continue
        kinds = {content for path in found[:_LOOKED_AT] if (content := _kind_by_content(store, path))}
        if kinds == {_DICOM}:
            findings.leave_out(found, f"{_DICOM} by their content, which {_MEDICAL}")
        elif kinds == {TIFF} and re.fullmatch(r"\.[a-z]\w{1,4}", ending(found[0])):
            findings.leave_out(found, _LIKE_TIFF)
        elif kinds:
            names = " or ".join(sorted(kinds))
            findings.leave_out(found, f"{names} by their content, but with another ending: rename them")


def _kind_by_content(store: Store, path: str) -> str | None:
    """The kind of image that a file's first bytes indicate; None for any other file."""
    try:
        with store.open(path) as file:
            head = file.read(_HEAD)
    except Exception:  # whatever it is, the file is reported as unread
        return None
    if head[128:132] == b"DICM":
        return _DICOM
    if head.startswith(b"RIFF"):
        return ".webp" if head[8:12] == b"WEBP" else None  # .wav and .avi begin with RIFF, too
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def report_unread(paths: Sequence[str], findings: Findings) -> None:
    """Reports by kind which of `paths`, the files that nothing has read, aren't images."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in [path for path in paths if path not in findings.unread and not is_image(path)]:
        if is_junk(path):
            findings.mark_unread([path], JUNK)
        elif _NO_DATA.fullmatch(posixpath.basename(path)):
            findings.mark_unread([path], "not data, to judge by its name")
        else:
            kinds[".nii.gz" if path.lower().endswith(".nii.gz") else ending(path)].append(path)
    for kind in [kind for kind in kinds if kind in UNREADABLE]:
        findings.leave_out(kinds.pop(kind), f"{kind} files {UNREADABLE[kind]}")
    _report_metadata_like([path for kind in TABLES for path in kinds.pop(kind, [])], findings)
    for kind, found in kinds.items():
        findings.mark_unread(found, f"{kind} file, not an image".lstrip())
    if kinds:
        each = [f"{plural(len(found), f'{kind} file'.strip())} ({found[0]})" for kind, found in kinds.items()]
        rest = f" and {plural(len(each) - _KINDS, 'more kind')}" if len(each) > _KINDS else ""
        message = f"not read: {', '.join(each[:_KINDS])}{rest}"
        findings.warn(f"{message}; captions come from NAME.txt or NAME.caption beside NAME.png, or from data.pairs=")


def _report_metadata_like(tables: Sequence[str], findings: Findings) -> None:
    """Warns of tables with other names than metadata."""
    findings.mark_unread(tables, "a table that isn't named metadata.jsonl or metadata.csv")
    if not tables:
        return
    more = f" ({len(tables)} such files)" if len(tables) > 1 else ""
    has_parquet = any(ending(path) == PARQUET for path in tables)
    parquet = "; data=huggingface data.dataset=PATH reads .parquet" if has_parquet else ""
    findings.warn(
        f"{tables[0]} isn't read{more}: captions and labels come from metadata.jsonl or metadata.csv{parquet}"
    )
