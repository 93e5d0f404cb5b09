"""The page's own folder, `RUNS/app/`: pictures drawn, pictures they began from, what was set, and records of runs."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.images import open_image, save_png, turned

if TYPE_CHECKING:
    from PIL.Image import Image


INPUT_BYTES = 2**30  # of the images that others begin from; beyond, the oldest are removed
SHOWN_BYTES = 2**30  # of uploads, and of copies of what is shown
FILES = 20_000  # in either folder


class Store:
    """Files under `folder`, which is made when first written to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()

    def save_picture(self, picture: "Image", chunks: Mapping[str, str], seed: int) -> Path:
        """Keeps a drawn picture, with its settings in it, and says where."""
        with self._lock:
            day = self.folder / "pictures" / time.strftime("%Y-%m-%d")
            number = 1 + max((int(p.name[:5]) for p in day.glob("[0-9]" * 5 + "-*.png")), default=0)
            path = day / f"{number:05d}-{seed}.png"
            save_png(picture, path, chunks)
        return path

    def pictures(self, limit: int = 60) -> list[Path]:
        """The newest pictures, newest first."""
        days = sorted((self.folder / "pictures").glob("*"), reverse=True)
        found = (path for day in days for path in sorted(day.glob("*.png"), reverse=True))
        return [path for path, _ in zip(found, range(limit), strict=False)]

    def keep_input(self, picture: "Image") -> str:
        """Keeps an image that others begin from, turned as its EXIF says and with its colour profile; returns its name,
        16 hexadecimal digits of the hash of pixels and profile."""
        upright: Any = turned(picture)
        if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):  # what a PNG holds
            upright = open_image(upright).convert("RGB")  # type: ignore[union-attr]
        buffer = io.BytesIO()
        upright.save(buffer, format="PNG")
        profile = upright.info.get("icc_profile") or b""
        content = f"{upright.mode}{upright.size}".encode() + upright.tobytes() + profile
        name = hashlib.sha256(content).hexdigest()[:16]
        path = self.folder / "inputs" / f"{name}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, buffer.getvalue())
            trim(path.parent, INPUT_BYTES)
        path.touch()  # as used now
        return name

    def input(self, name: str) -> Path:
        """The file of a kept input."""
        path = self.folder / "inputs" / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not path.is_file():
            raise UserError("the picture that it begins from isn't kept here any more: put it in again.")
        return path

    def remember(self, section: str, values: Mapping[str, Any]) -> None:
        """Keeps what was set, for the next start."""
        with self._lock:
            kept = self._read() | {section: dict(values)}
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / "settings.json", json.dumps(kept, ensure_ascii=False, indent=1))

    def recall(self, section: str) -> dict[str, Any]:
        """What was set last; nothing where the file is missing or damaged."""
        values = self._read().get(section)
        return values if isinstance(values, dict) else {}

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / "settings.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}


class Shown:
    """The one folder that the server gives files from: copies of what the page shows, gone with the process."""

    def __init__(self, limit: int = SHOWN_BYTES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ldm-page-", ignore_cleanup_errors=True)
        self.path, self.limit = Path(self._folder.name), limit

    def trim(self) -> None:
        """Keeps to `limit` bytes: the oldest uploads and copies go first."""
        trim(self.path, self.limit)

    def copy(self, path: Path) -> str:
        """A copy of `path` that may be served, made anew when the file has changed."""
        state = path.stat()
        key = hashlib.sha256(f"{path.resolve()}{state.st_mtime_ns}{state.st_size}".encode()).hexdigest()[:20]
        target = self.path / "shown" / key / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        target.touch()  # as used now
        return str(target)

    def close(self) -> None:
        self._folder.cleanup()


def trim(folder: Path, limit: int, files: int = FILES) -> None:
    """Removes the oldest files under `folder` until at most `limit` bytes in `files` files are left."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if path.is_file():
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
    found.sort(key=lambda one: one[0], reverse=True)
    kept = 0
    for i, (_, size, path) in enumerate(found):
        kept += size
        if kept > limit or i >= files:
            with contextlib.suppress(OSError):
                path.unlink()
                if path.parent != folder:
                    path.parent.rmdir()
