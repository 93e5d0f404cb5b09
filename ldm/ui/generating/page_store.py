"""The page's own folder, `RUNS/app/`: generated images, their inputs, and the page's settings; and served copies."""

import contextlib
import hashlib
import io
import itertools
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.images import open_image, open_unconverted, save_png

if TYPE_CHECKING:
    from PIL.Image import Image


INPUT_BYTES = 2**30  # of stored inputs; beyond that, the oldest are removed
SERVED_BYTES = 2**30  # of uploads and of copies of what the page shows
MAX_FILES = 20_000  # in either folder
MAX_NAMED = 1024  # images that are looked up at a time
_IMAGE_NAME = re.compile(r"\d{4}-\d\d-\d\d/\d{5,9}-\d{1,20}\.png", re.ASCII)


class PageStore:
    """Files under `folder`, which is created when first written to. Thread-safe."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()

    def save_image(self, image: "Image", chunks: Mapping[str, str], seed: int) -> Path:
        """Saves a generated image with its settings as PNG text `chunks`; returns its path."""
        with self._lock:
            date = time.strftime("%Y-%m-%d")
            day, deleted = self.folder / "pictures" / date, self.folder / "deleted" / date
            # Numbers of deleted images aren't given again: deleting the new one would replace the old one.
            used = [path for folder in (day, deleted) for path in folder.glob("[0-9]" * 5 + "-*.png")]
            number = 1 + max((int(path.name[:5]) for path in used), default=0)
            path = day / f"{number:05d}-{seed}.png"
            save_png(image, path, chunks)
        return path

    def images(self) -> Iterator[Path]:
        """The generated images, newest first."""
        for day in sorted((self.folder / "pictures").glob("*"), reverse=True):
            yield from sorted(day.glob("*.png"), reverse=True)

    def recent_images(self, limit: int = 60) -> list[Path]:
        """Up to `limit` of the generated images, newest first."""
        return list(itertools.islice(self.images(), limit))

    def delete(self, path: Path) -> Path:
        """Moves a generated image to the folder `deleted`; returns where it is. Raises UserError for any other file."""
        name = self.name_of(path)
        if not self.images_named([name]):
            raise UserError("the image isn't stored here any more: refresh the list.")
        target = self.folder / "deleted" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return path.replace(target)

    def name_of(self, path: Path) -> str:
        """DAY/FILE of a generated image; of any other file, its name."""
        pictures = self.folder / "pictures"
        return path.relative_to(pictures).as_posix() if path.is_relative_to(pictures) else path.name

    def images_named(self, names: Any) -> list[Path]:
        """The generated images of these names, as `name_of` gives them; of anything else, nothing."""
        named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        fitting = [name for name in named[:MAX_NAMED] if _IMAGE_NAME.fullmatch(name)]
        return [path for name in fitting if (path := self.folder / "pictures" / name).is_file()]

    def keep_input(self, image: "Image") -> str:
        """Stores an input of a request, upright by its EXIF orientation and with its colour profile; returns its name.

        The name is 16 hexadecimal digits of the hash of pixels and profile, so the same image is stored once.
        """
        upright: Any = open_unconverted(image)
        if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):  # those of a PNG
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
        path.touch()  # the most recently used
        return name

    def input_path(self, name: str) -> Path:
        """The file of a stored input. Raises UserError if it isn't stored any more."""
        path = self.folder / "inputs" / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not path.is_file():
            raise UserError("the input image isn't stored here any more: upload it again.")
        return path

    def remember(self, section: str, values: Mapping[str, Any]) -> None:
        """Stores the settings of a section for the next start."""
        with self._lock:
            kept = self._read() | {section: dict(values)}
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / "settings.json", json.dumps(kept, ensure_ascii=False, indent=1))

    def recall(self, section: str) -> dict[str, Any]:
        """The stored settings of a section; empty if the file is missing or damaged."""
        values = self._read().get(section)
        return values if isinstance(values, dict) else {}

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / "settings.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}


class ServedFiles:
    """The only folder that the server serves files from: uploads, and copies of what the page shows. It ends with the
    process."""

    def __init__(self, limit: int = SERVED_BYTES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ldm-page-", ignore_cleanup_errors=True)
        self.path, self.limit = Path(self._folder.name), limit

    def trim(self) -> None:
        """Removes the oldest uploads and copies until at most `limit` bytes are left."""
        trim(self.path, self.limit)

    def copy(self, path: Path) -> str:
        """A copy of `path` that may be served; a new one if the file has changed."""
        state = path.stat()
        key = hashlib.sha256(f"{path.resolve()}{state.st_mtime_ns}{state.st_size}".encode()).hexdigest()[:20]
        target = self.path / "shown" / key / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        target.touch()  # the most recently used
        return str(target)

    def save(self, image: "Image") -> str:
        """An image that isn't stored, such as a preview, as a file that may be served."""
        file, path = tempfile.mkstemp(".png", dir=self.path)
        with open(file, "wb") as out:
            image.save(out, format="PNG")
        return path

    def close(self) -> None:
        """Removes the folder."""
        self._folder.cleanup()


def trim(folder: Path, limit: int, files: int = MAX_FILES) -> None:
    """Removes the oldest files under `folder` until at most `files` files, of `limit` bytes in all, are left."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed in the meantime
            if path.is_file():
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
    found.sort(key=lambda entry: entry[0], reverse=True)
    kept = 0
    for i, (_, size, path) in enumerate(found):
        kept += size
        if kept > limit or i >= files:
            with contextlib.suppress(OSError):
                path.unlink()
                if path.parent != folder:
                    path.parent.rmdir()
