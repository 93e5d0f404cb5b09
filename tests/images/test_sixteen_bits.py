"""PNG and PPM of 16 bits in colour or with alpha, in all their bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.images import BadImage, Preprocess
from ldm.images.files.sixteen_bits import read_deep

TYPES = {3: 2, 2: 4, 4: 6}  # PNG's by the channels
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def filtered(lines: np.ndarray, filters: list[int], size: int) -> bytes:
    """Rows of bytes (H, W) as PNG's filters leave them, byte by byte as the standard says."""
    out = b""
    for y, line in enumerate(lines.astype(int)):
        kind, row = filters[y % len(filters)], []
        for x in range(len(line)):
            a = line[x - size] if x >= size else 0
            b = int(lines[y - 1, x]) if y else 0
            c = int(lines[y - 1, x - size]) if y and x >= size else 0
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row.append((line[x] - (0, a, b, (a + b) // 2, near)[kind]) % 256)
        out += bytes([kind, *row])
    return out


def png16(pixels: np.ndarray, filters=(0,), interlaced: bool = False, more: bytes = b"") -> bytes:
    height, width, channels = pixels.shape
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [pixels]
    lines = [part.astype(">u2").view(np.uint8).reshape(part.shape[0], -1) for part in parts if part.size]
    body = zlib.compress(b"".join(filtered(part, list(filters), 2 * channels) for part in lines))
    head = struct.pack(">IIBBBBB", width, height, 16, TYPES[channels], 0, 0, interlaced)
    data = chunk(b"IDAT", body[:20]) + chunk(b"IDAT", body[20:])  # in two pieces
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + data + chunk(b"IEND", b"")


def values(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**16, (height, width, channels), np.uint16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 1, 2, 0)])
def test_every_bit_of_a_png_is_read(filters, channels, interlaced):
    pixels = values(7, 5, channels)
    content = png16(pixels, filters, interlaced)
    notes: list[str] = []
    assert np.array_equal(read_deep(content, notes, 10**6), pixels) and notes == []
    if channels == 3:  # Pillow agrees in its 8
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels >> 8)
        assert np.array_equal(Preprocess(3, 7, 5, 16).array(content), pixels.transpose(2, 0, 1))


def test_shapes_of_one_row_and_one_column_and_a_larger_one():
    for height, width in ((1, 9), (9, 1), (1, 1), (33, 70)):
        pixels = values(height, width, 3)
        for interlaced in (False, True):
            assert np.array_equal(read_deep(png16(pixels, (4, 1, 3, 2), interlaced), [], 10**6), pixels)


def test_what_pillow_writes_of_16_bits_and_others_are_left_to_it():
    for image in (Image.new("I;16", (4, 4)), Image.new("RGB", (4, 4))):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert read_deep(file.getvalue(), [], 100) is None
    assert read_deep(b"P6\n4 4\n255\n" + bytes(48), [], 100) is None and read_deep(b"", [], 100) is None


@pytest.mark.parametrize("top", [65535, 1023, 256])
def test_every_bit_of_a_ppm_is_read(top):
    raw = np.arange(48).reshape(4, 4, 3) * top // 47
    content = b"P6 # a comment\n4 4\n%d\n" % top + raw.astype(">u2").tobytes()
    found = Preprocess(3, 4, 4, 16).array(content)
    assert np.array_equal(found, np.rint(raw * (65535 / top)).transpose(2, 0, 1)) and found.max() == 65535


def test_channels_are_made_as_of_8_bits():
    pixels = values(4, 4, 4)
    notes: list[str] = []
    made = Preprocess(3, 4, 4, 16, background=[255, 0, 0]).array(png16(pixels), notes)
    share = pixels[..., 3:] / 65535
    wanted = pixels[..., :3] * share + np.array([65535, 0, 0]) * (1 - share)
    assert abs(made.transpose(1, 2, 0) - wanted).max() <= 0.5 and "transparency blended with" in notes[0]
    assert np.array_equal(Preprocess(4, 4, 4, 16).array(png16(pixels)), pixels.transpose(2, 0, 1))
    opaque = Preprocess(4, 4, 4, 16).array(png16(pixels[..., :3]))
    assert (opaque[3] == 65535).all() and np.array_equal(opaque[:3], pixels[..., :3].transpose(2, 0, 1))
    grey = Preprocess(1, 4, 4, 16).array(png16(pixels[..., :3]))
    assert abs(grey[0] - pixels[..., :3] @ [0.299, 0.587, 0.114]).max() <= 0.5
    assert np.array_equal(Preprocess(2, 4, 4, 16).array(png16(pixels[..., :2])), pixels[..., :2].transpose(2, 0, 1))
    key = chunk(b"tRNS", pixels[1, 2, :3].astype(">u2").tobytes())
    alpha = read_deep(png16(pixels[..., :3], more=key), [], 100)[..., 3]
    assert alpha[1, 2] == 0 and (alpha == 65535).sum() == 15


def test_orientation_is_followed_and_a_profile_is_reported():
    pixels, exif = values(4, 6, 3), Image.Exif()
    exif[0x0112] = 6  # the image is to be turned by 90 degrees
    turned = read_deep(png16(pixels, more=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))), [], 100)
    assert np.array_equal(turned, np.rot90(pixels, -1))
    notes: list[str] = []
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert read_deep(png16(pixels, more=chunk(b"iCCP", b"x\0\0" + zlib.compress(lab))), notes, 100) is not None
    assert len(notes) == 1 and "read as sRGB" in notes[0]


def test_damaged_ones_are_refused():
    whole = png16(values(40, 40, 3))
    for content, message in (
        (whole[:2000], "truncated"),
        (png16(values(4, 4, 3)).replace(b"IDAT", b"IDAU"), "truncated"),
        (b"P6\n4 4\n65535\n" + bytes(90), "truncated"),
    ):
        with pytest.raises(BadImage, match=message):
            Preprocess(3, 4, 4, 16).array(content)
    with pytest.raises(BadImage, match="40x40 pixels"):
        read_deep(whole, [], 100)
