"""Where files lie: a folder or a .zip, as paths with forward slashes."""

import os
import zipfile
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from ldm.errors import UserError

MAX_BYTES = 2**30  # beyond this a packed file is taken for a bomb


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

    def under(self, folder: str) -> list[str]:
        """The paths inside `folder` ("" for all)."""
        return [path for path in self.entries if path.startswith(folder + "/" if folder else "")]

    @cached_property
    def tops(self) -> set[str]:
        """The folders at the top."""
        return {path.split("/")[0] for path in self.entries if "/" in path}


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
            raise UserError(f"data.root={path} can't be read as a .zip ({error}).") from None
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
        return cast(BinaryIO, self.zip.open(self.prefix + path))


def open_store(root: str | Path) -> Store:
    """The folder or .zip at `root`."""
    path = Path(root).expanduser()
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        return ZipStore(path)
    raise UserError(f"data.root={root} doesn't exist; name a folder or a .zip of images.")
