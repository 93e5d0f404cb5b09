"""The forms in which images are given: the path or the bytes of a file, a Pillow image, or an array."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError
from ldm.images.files.unreadable import BadImage

Source = Any  # a file's path or bytes, a Pillow image, or an array


def with_name(source: Source, reason: str) -> str:
    """The reason with the file's name before it, if there is one."""
    return f"{source}: {reason}" if isinstance(source, (str, Path)) else reason


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Turns every exception in the block into a BadImage with the file's name: Pillow's readers raise any kind."""
    try:
        yield
    except UserError as error:
        raise BadImage(with_name(source, str(error))) from None
    except Exception as error:
        raise BadImage(with_name(source, f"can't be read ({error})")) from error


def bytes_of(source: str | Path | bytes) -> bytes:
    """A file's content."""
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def is_jpeg(source: Source) -> bool:
    """Whether an image is a JPEG file, or was one when Pillow opened it."""
    if isinstance(source, (str, Path, bytes)):
        return bytes_of(source).startswith(b"\xff\xd8")
    return getattr(source, "format", None) == "JPEG"
