"""The size of the metadata in an image file, checked before Pillow reads them in time that grows with its square.

Pillow joins the Exif data of a JPEG segment by segment and the comments of a GIF block by block, each time copying
everything before (50 MB take half a minute), and it visits every piece of a file, however small.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from ldm.images.files.unreadable import BadImage

METADATA = 4 * 2**20  # bytes of a JPEG's Exif data, and of a PNG's text, Exif data and colour profile
COMMENTS = 2**16  # bytes of a GIF's comments
PIECES, PIECE = 10_000, 128  # a file may have PIECES pieces, and one more for each PIECE bytes
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP")
_EXIF = b"Exif\0"


def check_metadata(stream: BinaryIO, head_only: bool = False) -> None:
    """Raises BadImage for a JPEG, PNG or GIF that would take long to open. The stream's position stays the same.

    With `head_only` nothing after the first pixels is checked, since Pillow reads no further before it decodes them.
    """
    begin = stream.tell()
    magic = stream.read(8)
    room = PIECES + stream.seek(0, 2) // PIECE
    found = 0
    for kind, (pieces, most) in _KINDS.items():
        if magic.startswith(kind):
            stream.seek(begin)
            for i, size in enumerate(pieces(stream, head_only)):
                found += size
                if found > most:
                    raise BadImage(f"has more than {most // 1024} kB of metadata: save it without metadata")
                if i > room:
                    raise BadImage("has more pieces than an image can have: save it again")
    stream.seek(begin)


def _jpeg(stream: BinaryIO, head_only: bool) -> Iterator[int]:
    """The bytes of Exif data in each segment before the pixels; 0 for each byte between segments, which is skipped."""
    stream.seek(2, 1)
    byte = stream.read(1)
    while byte:
        marker = stream.read(1) if byte == b"\xff" else b""
        if marker in (b"\xda", b"\xd9"):
            return
        yield _exif(stream, marker) if _has_length(marker) else 0
        byte = b"\xff" if marker == b"\xff" else stream.read(1)


def _has_length(marker: bytes) -> bool:
    return marker not in (b"", b"\xff", b"\0", b"\1") and not b"\xd0" <= marker <= b"\xd8"


def _exif(stream: BinaryIO, marker: bytes) -> int:
    """Moves past a segment; returns its bytes if it has Exif data, otherwise 0."""
    size = max(0, int.from_bytes(stream.read(2), "big") - 2)
    start = stream.read(min(size, len(_EXIF)))
    stream.seek(size - len(start), 1)
    return size if marker == b"\xe1" and start == _EXIF else 0


def _png(stream: BinaryIO, head_only: bool) -> Iterator[int]:
    """The bytes of metadata in each chunk."""
    stream.seek(8, 1)
    while len(head := stream.read(8)) == 8 and not (head_only and head[4:] == b"IDAT"):
        size = int.from_bytes(head[:4], "big")
        stream.seek(size + 4, 1)
        yield size if head[4:] in _TEXT else 0


def _gif(stream: BinaryIO, head_only: bool) -> Iterator[int]:
    """The bytes of comments in each block of the first two frames, which are those that Pillow reads."""
    stream.seek(10, 1)
    _skip_palette(stream, 2)
    frames = 0
    while frames < (1 if head_only else 2) and (kind := stream.read(1)) not in (b"", b";"):
        is_comment = kind == b"!" and stream.read(1) == b"\xfe"
        if kind == b",":
            frames += 1
            stream.seek(8, 1)
            _skip_palette(stream, 0)
            stream.seek(1, 1)
        yield 1
        while kind in (b"!", b",") and (size := stream.read(1)) not in (b"", b"\0"):
            stream.seek(size[0], 1)
            yield size[0] if is_comment else 0


def _skip_palette(stream: BinaryIO, after: int) -> None:
    """Moves past a byte of flags, `after` more bytes, and the palette that the flags declare."""
    flags = (stream.read(1) or b"\0")[0]
    stream.seek(after + (3 << (flags & 7) + 1 if flags & 128 else 0), 1)


_KINDS: dict[bytes, tuple[Callable[[BinaryIO, bool], Iterator[int]], int]] = {
    b"\xff\xd8": (_jpeg, METADATA),
    b"\x89PNG": (_png, METADATA),
    b"GIF8": (_gif, COMMENTS),
}
