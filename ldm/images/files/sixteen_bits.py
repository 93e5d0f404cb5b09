"""PNG and PPM of 16 bits in colour or with alpha, which Pillow reads as 8 bits.

PNG: ISO/IEC 15948, filters in its section 9 and Adam7 in section 8. PPM: netpbm's P6.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from ldm.images.files.colour import CICP, Notes, cicp, unconverted, unembedded
from ldm.images.files.tiff import ORIENTATION, oriented
from ldm.images.files.unreadable import BadImage

_PNG = b"\x89PNG\r\n\x1a\n"
_PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
_CHANNELS = {2: 3, 4: 2, 6: 4}  # by PNG's type: colour, grey and alpha, colour and alpha
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_TOP = 2**16 - 1


def read_deep(content: bytes, notes: Notes, max_pixels: int) -> np.ndarray | None:
    """The image (H, W, C) uint16, upright, with alpha as the last of 2 or 4 channels; None for any other file.

    Notes on colours that can't be converted are added to `notes`. Raises BadImage, also for more than `max_pixels`.
    """
    if match := _PPM.match(content):
        width, height, top = map(int, match.groups())
        return _ppm(content[match.end() :], (height, width), top, max_pixels) if top > 255 else None
    if content[: len(_PNG)] != _PNG or content[12:16] != b"IHDR" or content[24] != 16 or content[25] not in _CHANNELS:
        return None
    width, height = struct.unpack(">II", content[16:24])
    _check(width, height, max_pixels)
    chunks = list(_chunks(content))
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    passes = _ADAM7 if content[28] else _WHOLE
    pixels = _unpacked(packed, (height, width), _CHANNELS[content[25]], passes)
    key = next((body for kind, body in chunks if kind == b"tRNS" and len(body) == 6), None)
    if key and pixels.shape[2] == 3:  # a single transparent colour
        is_key = (pixels == np.frombuffer(key, ">u2")).all(2, keepdims=True)
        pixels = np.concatenate([pixels, np.where(is_key, 0, _TOP).astype(np.uint16)], 2)
    return oriented(pixels, _orientation(content, notes, "L" if pixels.shape[2] == 2 else "RGB"))


def _orientation(content: bytes, notes: Notes, mode: str) -> int:
    """The image's orientation. Notes on its colours are added to `notes`."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        profile = image.info.get("icc_profile")
        if code := cicp(content):
            image.info[CICP] = code
        notes += unconverted(profile, mode) if isinstance(profile, bytes) else unembedded(image)
        return int(image.getexif().get(ORIENTATION, 1))


def _check(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise BadImage(f"has {width}x{height} pixels, where 1 to {max_pixels // 10**6} million are read")


def _ppm(body: bytes, shape: tuple[int, int], top: int, max_pixels: int) -> np.ndarray:
    height, width = shape
    _check(width, height, max_pixels)
    if len(body) < 6 * width * height:
        raise BadImage("is truncated: the download or the disk has failed")
    values = np.frombuffer(body, ">u2", 3 * width * height).reshape(height, width, 3)
    if top == _TOP:
        return values.astype(np.uint16)
    return np.rint(values.astype(np.float64) * (_TOP / top)).clip(0, _TOP).astype(np.uint16)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        yield kind, content[at + 8 : at + 8 + length]
        at += 12 + length


def _unpacked(
    packed: bytes, shape: tuple[int, int], channels: int, passes: tuple[tuple[int, int, int, int], ...]
) -> np.ndarray:
    """The pixels (H, W, C) of compressed rows, of a single pass over the image or of Adam7's seven.

    A pass (x, y, dx, dy) has the pixels in columns x, x + dx, ... and rows y, y + dy, ...
    """
    height, width = shape
    size = 2 * channels  # bytes of a pixel
    parts = [(x, y, dx, dy, -(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    parts = [part for part in parts if part[4] > 0 and part[5] > 0]
    total = sum(h * (1 + w * size) for *_, w, h in parts)
    rows = zlib.decompressobj().decompress(packed, total)
    if len(rows) < total:
        raise BadImage("is truncated: the download or the disk has failed")
    pixels = np.empty((height, width, channels), np.uint16)
    at = 0
    for x, y, dx, dy, w, h in parts:
        lines = np.frombuffer(rows, np.uint8, h * (1 + w * size), at).reshape(h, 1 + w * size)
        at += lines.size
        values = _unfiltered(lines[:, 1:].reshape(h, w, size), lines[:, 0])
        pixels[y::dy, x::dx] = values.view(">u2")
    return pixels


def _unfiltered(filtered: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The bytes of pixels (H, W, S) from those that each row's filter, `kinds` (H,), has changed.

    A byte depends on those to the left, above, and above to the left, so all pixels of a diagonal are done at once.
    """
    if kinds.max() > 4:
        raise BadImage(f"has rows with an unknown filter, {kinds.max()}: the file is damaged")
    height, width, size = filtered.shape
    out = np.zeros((height + 1, width + 1, size), np.int16)  # zeros above and to the left
    for diagonal in range(height + width - 1):
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        left, above, corner = out[row + 1, column], out[row, column + 1], out[row, column]  # (n, S)
        predictions = [np.zeros_like(left), left, above, (left + above) >> 1, _paeth(left, above, corner)]
        predicted = np.choose(kinds[row][:, None], predictions)
        out[row + 1, column + 1] = (filtered[row, column] + predicted) & 255
    return np.ascontiguousarray(out[1:, 1:].astype(np.uint8))


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The nearest of the three to left + above - corner, the first of equally near ones (PNG's Paeth predictor)."""
    to_left, to_above = abs(above - corner), abs(left - corner)
    to_corner = abs(left + above - 2 * corner)
    second = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, second)
