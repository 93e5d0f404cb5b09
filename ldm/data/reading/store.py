"""The files of a folder or a .zip, by paths with forward slashes."""

import codecs
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from ldm.common.errors import UserError

MAX_BYTES = 2**30  # a packed file that is larger counts as a decompression bomb
_HINT = 2**12  # bytes
_EXCEL = " (Excel: save as CSV UTF-8.)"
_UNPACK = "unpack the .zip, and give the folder as data.root"
_METHODS: dict[int, object] = {9: "Deflate64, Windows' own", 93: "Zstandard", 95: "XZ"}
# Hidden files and folders of systems and tools, which nobody means as data.
_HIDDEN_JUNK = re.compile(
    r"\._.*|\.ds_store|\.(git|svn|hg|cache|venv|conda|tox|idea|vscode|config|local|npm|thumb.*|@.*|d?trash.*|nfs.*|fuse.*)"
    r"|\.(appledouble|spotlight.*|fseventsd|documentrevisions.*|temporaryitems|ipynb_checkpoints|__.*|st(folder|versions)"
    r"|sync|tmp\.drive(up|down)load|dropbox.*|snapshots?|picasa.*\.ini|directory|huggingface|hydra|ruff_cache|pytest_cache|mypy_cache)",
    re.IGNORECASE,
)


class Packed(OSError):
    """A file in an archive that can't be unpacked in place; the message says what to do."""


class Store:
    """Files by their paths with forward slashes.

    `entries` are the files, sorted by path, each with two numbers that change with its content. Left out of them are
    `passed`, paths that can't be read, with the reason; `closed`, folders without permission; `own`, the folders of
    this program's runs and caches; and `hidden`, files with a dot before a name on their path, except those of systems
    and tools.
    """

    where: str
    entries: dict[str, tuple[int, int]]
    passed: dict[str, str]
    closed: list[str]
    own: list[str]
    hidden: Sequence[str] = ()

    def __init__(self) -> None:
        self.entries, self.passed, self.closed, self.own = {}, {}, [], []

    def read(self, path: str) -> bytes:
        """A file's content."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """A file for reading, seekable."""
        raise NotImplementedError

    def hint(self, path: str) -> bytes:
        """A part of the content that is read quickly and differs in most files of one size: the last bytes."""
        with self.open(path) as file:
            file.seek(max(0, self.entries[path][0] - _HINT))
            return file.read()

    def text(self, path: str) -> str:
        """A file's text: UTF-8, or UTF-16 with a byte order mark. Raises UserError."""
        where = f"{self.where}/{path}"
        try:
            content = self.read(path)
        except FileNotFoundError:
            raise UserError(f"{where} is a link to a missing file: fetch that file, or remove the link.") from None
        except Packed as error:
            raise UserError(f"{where} can't be read: {error}.") from None
        except Exception as error:  # a .zip's members fail in many ways
            raise UserError(f"{where} can't be read ({error}): fetch it again, or remove it.") from None
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            words = content.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            hint = _EXCEL if path.lower().endswith(".csv") else ""
            raise UserError(f"{where} isn't UTF-8 ({error}); save it so.{hint}") from None
        words = words.removeprefix("\ufeff")  # a second byte order mark
        if "\0" in words:
            raise UserError(f"{where} holds zero bytes, which text never has: write it again as UTF-8, or remove it.")
        return words

    def under(self, folder: str) -> list[str]:
        """The paths inside `folder` ("" for all)."""
        return [path for path in self.entries if path.startswith(folder + "/" if folder else "")]

    def spelled(self, path: str) -> str | None:
        """The path as the store spells it, even if only the Unicode form differs: macOS writes é as two characters."""
        return path if path in self.entries else self._composed.get(composed(path))

    @cached_property
    def _composed(self) -> dict[str, str]:
        """The paths that aren't ASCII, by their composed form."""
        return {composed(path): path for path in self.entries if not path.isascii()}


class FolderStore(Store):
    """A folder on disk. Links are followed, hidden files left out, and only regular files opened: pipes would block."""

    def __init__(self, root: Path):
        super().__init__()
        self.root, self.where = root, str(root)
        hidden: list[Path] = []
        seen = set()
        for base, folders, files in os.walk(root, followlinks=True, onerror=self._refused):
            real = os.path.realpath(base)
            if real in seen:  # a link to a folder above this one
                folders.clear()
                continue
            seen.add(real)
            if Path(base) != root and _is_own(Path(base), folders, files):
                self.own.append(self._relative(Path(base)))
                folders.clear()
                continue
            hidden += [Path(base, name) for name in (*folders, *files) if name.startswith(".")]
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    self._add(Path(base, name))
        self.entries = dict(sorted(self.entries.items()))
        self.hidden = sorted(self._relative(path) for path in _files_in(hidden))

    def _add(self, path: Path) -> None:
        try:
            status = path.stat()
        except OSError:  # a dead link, or no permission: reported when it is read
            self.entries[self._relative(path)] = (0, 0)
            return
        if stat.S_ISREG(status.st_mode):
            self.entries[self._relative(path)] = (status.st_size, status.st_mtime_ns)
        else:
            self.passed[self._relative(path)] = "not regular files (pipes, sockets or devices)"

    def _refused(self, error: OSError) -> None:
        self.closed.append(self._relative(Path(error.filename)))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def open(self, path: str) -> BinaryIO:
        """The file itself, as the operating system opens it."""
        return open(self.root / path, "rb")


class ZipStore(Store):
    """A .zip, read in place. The paths leave out a single folder around everything."""

    def __init__(self, path: Path):
        super().__init__()
        self.where = str(path)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.root={path} can't be read as a .zip ({error}): {_step(path)}.") from None
        found: dict[str, zipfile.ZipInfo] = {}
        hidden: list[str] = []
        for info in self.zip.infolist():
            name = info.filename.replace("\\", "/")  # Windows' older tools write backslashes
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise UserError(f"{path} holds '{info.filename}', a path that leads out of it; don't use this file.")
            if name.endswith("/"):
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                self.passed[name] = "links in a .zip, which aren't followed: unpack it, and give the folder"
            elif not any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                if name in found:
                    self.passed[name] = "in the .zip under the same name as a later file, which is read"
                found[name] = info
            elif not any(part == "__MACOSX" or _HIDDEN_JUNK.fullmatch(part) for part in name.split("/")):
                hidden.append(name)
        around = {name.split("/")[0] for name in found}
        prefix = f"{around.pop()}/" if len(around) == 1 and all("/" in name for name in found) else ""
        self._members = {name[len(prefix) :]: info for name, info in sorted(found.items())}
        self.entries = {name: (info.file_size, info.CRC) for name, info in self._members.items()}
        self.passed = {name.removeprefix(prefix): reason for name, reason in self.passed.items()}
        self.hidden = [name.removeprefix(prefix) for name in sorted(hidden)]

    def hint(self, path: str) -> bytes:
        """The CRC-32 in the archive's index, so nothing is unpacked."""
        return self.entries[path][1].to_bytes(4)  # the CRC

    def open(self, path: str) -> BinaryIO:
        """A member, unpacked as it is read. Raises OSError above 1 GB, and Packed for a method that Python lacks."""
        if self.entries.get(path, (0, 0))[0] > MAX_BYTES:
            raise OSError("according to its header, it unpacks to more than 1 GB")
        try:
            return cast(BinaryIO, self.zip.open(self._members[path]))
        except NotImplementedError:
            how = self._members[path].compress_type
            raise Packed(f"it is compressed with {_METHODS.get(how, how)}: {_UNPACK}") from None
        except RuntimeError:
            raise Packed(f"it is encrypted: {_UNPACK}") from None


def _is_own(base: Path, folders: Sequence[str], files: Sequence[str]) -> bool:
    """Whether a folder is that of a run of this program, or its cache: they may lie in the folder of the images."""
    is_run = "checkpoints" in folders and "config.yaml" in files and ("metrics.csv" in files or "model" in folders)
    return is_run or base.name == "cache" and "data" in folders and any(base.glob("data/*/tables.json"))


def _files_in(hidden: Iterable[Path]) -> Iterator[Path]:
    """The files at or in these paths, without junk; links aren't followed."""
    for path in hidden:
        if _HIDDEN_JUNK.fullmatch(path.name):
            continue
        if not path.is_dir():
            yield path
            continue
        for base, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not _HIDDEN_JUNK.fullmatch(name)]
            yield from (Path(base, name) for name in files if not _HIDDEN_JUNK.fullmatch(name))


def _step(path: Path) -> str:
    """The next step for a file that was given as data.root but isn't a .zip."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return f"data=huggingface data.dataset={path} reads it"
    if kind in (".csv", ".tsv", ".jsonl", ".json"):
        return "give the folder of the images as data.root, and put the table into it as metadata.csv or metadata.jsonl"
    if kind in (".7z", ".rar", ".tar", ".gz", ".tgz", ".xz", ".zst", ".bz2", ".zip"):
        return "unpack it, and give the folder (data=shards reads WebDataset's tars)"
    return "give the folder that holds the images"


def composed(path: str) -> str:
    """The path in composed form, with é as one character, as all systems but macOS write it."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def open_store(root: str | Path) -> Store:
    """The folder or .zip at `root`. Raises UserError if neither is there."""
    path = Path(root).expanduser()
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        return ZipStore(path)
    pattern = " (patterns aren't read: data.without='[NAME]' leaves files out)" if "*" in str(root) else ""
    raise UserError(f"data.root={root} doesn't exist; give a folder or a .zip of images{pattern}.")
