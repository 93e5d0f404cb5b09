"""Where files lie: a folder or a .zip, as paths with forward slashes."""

import codecs
import os
import unicodedata
import zipfile
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from ldm.errors import UserError

MAX_BYTES = 2**30  # beyond this a packed file is taken for a bomb
_EXCEL = " (Excel: save as CSV UTF-8.)"
_UNPACK = "unpack the .zip, and name the folder as data.root"
_METHODS: dict[int, object] = {9: "Deflate64, Windows' own", 93: "Zstandard", 95: "XZ"}


class Packed(OSError):
    """A file in an archive that can't be unpacked in place, with what to do."""


class Store:
    """Files by their path with forward slashes. `entries` are sorted, with what tells a changed file from the old."""

    where: str
    entries: dict[str, tuple[int, int]]

    def read(self, path: str) -> bytes:
        """A file's content."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """A file for reading, seekable."""
        raise NotImplementedError

    def text(self, path: str) -> str:
        """A file's words: UTF-8, or UTF-16 that says so by its first bytes. Raises UserError."""
        where = f"{self.where}/{path}"
        try:
            content = self.read(path)
        except FileNotFoundError:
            raise UserError(f"{where} is a link to nothing: fetch the file that it means, or remove it.") from None
        except Packed as error:
            raise UserError(f"{where} can't be read: {error}.") from None
        except Exception as error:  # a .zip's members fail in many ways
            raise UserError(f"{where} can't be read ({error}): fetch it again, or remove it.") from None
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            words = content.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} isn't UTF-8 ({error}); save it so.{_EXCEL * path.endswith('.csv')}") from None
        if "\0" in words:
            raise UserError(f"{where} holds bytes of zero, which no text has: write it again as UTF-8, or remove it.")
        return words

    def under(self, folder: str) -> list[str]:
        """The paths inside `folder` ("" for all)."""
        return [path for path in self.entries if path.startswith(folder + "/" if folder else "")]

    def spelled(self, path: str) -> str | None:
        """The path as the store has it, also where only the letters' encoding differs: macOS writes é as two signs."""
        return path if path in self.entries else self._composed.get(composed(path))

    @cached_property
    def _composed(self) -> dict[str, str]:
        """By its composed form each path that isn't in it, or that may be meant by one that isn't."""
        return {composed(path): path for path in self.entries if not path.isascii()}


class FolderStore(Store):
    """A folder on disk; links are followed, hidden files left out."""

    def __init__(self, root: Path):
        self.root, self.where = root, str(root)
        found, seen = {}, set()
        for base, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(base)
            if real in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    path = Path(base, name)
                    stat = path.stat() if path.exists() else None  # a dead link is found out when it is read
                    entry = (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)
                    found[path.relative_to(root).as_posix()] = entry
        self.entries = dict(sorted(found.items()))

    def open(self, path: str) -> BinaryIO:
        return open(self.root / path, "rb")


class ZipStore(Store):
    """A .zip, read in place. A single folder around everything is looked through."""

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            way = "unpack it, and name the folder (data=shards reads tars of WebDataset)"
            raise UserError(f"data.root={path} can't be read as a .zip ({error}): {way}.") from None
        found = {}
        for info in self.zip.infolist():
            name = info.filename.replace("\\", "/")
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise UserError(f"{path} holds '{info.filename}', a path that leads out of it; don't use this file.")
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            if not info.is_dir() and not hidden:
                found[name] = (info.file_size, info.CRC)
        around = {name.split("/")[0] for name in found}
        self.prefix = f"{around.pop()}/" if len(around) == 1 and all("/" in name for name in found) else ""
        self.entries = {name[len(self.prefix) :]: entry for name, entry in sorted(found.items())}

    def open(self, path: str) -> BinaryIO:
        if self.entries.get(path, (0, 0))[0] > MAX_BYTES:
            raise OSError("the file says that it unpacks to over 1 GB")
        try:
            return cast(BinaryIO, self.zip.open(self.prefix + path))
        except NotImplementedError:
            how = self.zip.getinfo(self.prefix + path).compress_type
            raise Packed(f"it is compressed by {_METHODS.get(how, how)}: {_UNPACK}") from None
        except RuntimeError:
            raise Packed(f"it is encrypted: {_UNPACK}") from None


def composed(path: str) -> str:
    """With é as one sign, as all but macOS write it."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def open_store(root: str | Path) -> Store:
    """The folder or .zip at `root`."""
    path = Path(root).expanduser()
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        return ZipStore(path)
    raise UserError(f"data.root={root} doesn't exist; name a folder or a .zip of images.")
