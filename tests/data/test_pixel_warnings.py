"""Depths and axes that may be intended differently from how they were read."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import facts, tables


def png16(seed: int) -> bytes:
    """A colour PNG of 16 bits, 4x4."""
    rows = np.random.default_rng(seed).integers(0, 2**16, (4, 12)).astype(">u2")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (1000, 10), (255, 8), (2**15, None)])
def test_few_bits_in_sixteen_are_reported(tmp_path, caplog, top, bits):
    for i in range(3):
        Image.fromarray(np.full((4, 4), top - i, np.uint16)).save(tmp_path / f"{i}.png")
    tables(tmp_path)
    message = f"if they have {bits} bits, data.low=0 data.high={2 ** (bits or 0) - 1} makes the highest value white"
    assert (message in caplog.text) == (bits is not None)
    caplog.clear()
    train, _ = tables(tmp_path, low=0, high=top)
    assert train.images.max() == 65535 and not caplog.records


def test_colour_of_16_bits_that_is_cut_is_reported_for_an_older_cache_too(tmp_path, caplog):
    root = tmp_path / "d"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(png16(i))
    message = "PNGs and PPMs of 16 bits in colour or with alpha are reduced to 8 bits (2 of 2"
    assert tables(root)[0].images.dtype == np.uint8 and message in caplog.text
    caplog.clear()
    (home,) = (tmp_path / "cache").iterdir()
    replace(facts(root), doubts=None).save(home)
    tables(root)
    assert message in caplog.text and facts(root).doubts
    caplog.clear()
    train, _ = tables(root, bits=16)
    assert train.images.dtype == np.uint16 and not caplog.records
    assert (train.images % 257).any()  # of 8 bits all would be multiples


@pytest.mark.parametrize(("shape", "channels", "other"), [((12, 10, 6), 6, 12), ((6, 12, 10), 6, 10)])
def test_the_axes_of_arrays_are_reported(tmp_path, caplog, shape, channels, other):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full(shape, i, np.uint8))
    assert tables(tmp_path)[0].preprocess.channels == channels
    assert f"{channels} channels: data.channels={other} reads the other axis as channels" in caplog.text
    caplog.clear()
    assert tables(tmp_path, channels=other)[0].preprocess.channels == other and not caplog.records
