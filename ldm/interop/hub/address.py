"""Addresses of what lies on the hub: `hf://OWNER/NAME[@REVISION][/PATH]`, as huggingface_hub writes them."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ldm.common.errors import UserError

SCHEME = "hf://"
_START = re.compile(r"hf:/+")  # a Path of an address has a single slash
_NAME = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"hf:/+({_NAME}/{_NAME})(?:@(refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(.*))?", re.ASCII)
_OTHER_KINDS = ("datasets/", "spaces/", "kernels/", "buckets/")
_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\](.+))?$")


@dataclass(frozen=True)
class Address:
    """A repository, perhaps at a revision (branch, tag or commit), and perhaps a folder or file in it."""

    repository: str
    revision: str | None = None
    inner: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.inner}" if self.inner else "")


def is_address(path: object) -> bool:
    """Whether a path is an address on the hub."""
    return bool(_START.match(str(path)))


def parse(text: object) -> Address:
    """The address in a text or a Path. Raises UserError if it isn't a whole one."""
    match = _ADDRESS.fullmatch(str(text).rstrip("/"))
    words = _START.sub("", str(text))
    if words.startswith(_OTHER_KINDS):
        raise UserError(f"{text} names no repository of a model: give hf://OWNER/NAME.")
    inner = match[3] or "" if match else ""
    if not match or any(part in ("", ".", "..") for part in inner.split("/") if inner):
        raise UserError(f"{text} isn't an address on the hub: give hf://OWNER/NAME, hf://OWNER/NAME@REVISION or a "
                        "file or folder in it, hf://OWNER/NAME/PATH.")  # fmt: skip
    return Address(match[1], unquote(match[2]) if match[2] else None, inner)


def origin_of(path: str | Path) -> str | None:
    """The address, with the commit, of a file or folder in the hub's cache; None for any other path."""
    match = _SNAPSHOT.search(str(path))
    if not match:
        return None
    inner = Path(match[4]).as_posix() if match[4] else ""
    return str(Address(f"{match[1]}/{match[2]}", match[3], inner))


def name_of(path: Path) -> str:
    """The name of a file without its ending, or of a folder; for a repository in the hub's cache the repository's."""
    match = _SNAPSHOT.search(str(path))
    if match and not match[4]:
        return match[2]
    return path.stem if path.is_file() else path.name
