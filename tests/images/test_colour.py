import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ldm.images import Preprocess, open_image, open_map, open_mask
from ldm.images.files.colour import cicp
from tests.icc import SRGB, adobe_rgb, display_p3, gamma_curve, grey_profile, rgb_profile, srgb_curve

STORED = (40, 200, 60)
P3 = "colour profile converted to sRGB: Display P3"
BROKEN = "colour profile is broken; read as sRGB"


def packed(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def read(content, channels: int = 3) -> tuple[list[int], list[str]]:
    """The first pixel, and what was noted."""
    notes: list[str] = []
    return Preprocess(channels, 8, 8).array(content, notes)[:, 0, 0].tolist(), notes


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk after its head."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize(
    ("profile", "wanted"), [(display_p3(), (0, 204, 12)), (adobe_rgb(), (0, 201, 37))], ids=["p3", "adobe"]
)
@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_an_embedded_profile_becomes_srgb(format, options, profile, wanted):
    content = packed(Image.new("RGB", (8, 8), STORED), format, icc_profile=profile, **options)
    pixel, notes = read(content)
    np.testing.assert_allclose(pixel, wanted, atol=2)
    assert notes == [f"colour profile converted to sRGB: {'Display P3' if wanted[1] == 204 else 'Adobe RGB (1998)'}"]


def test_srgb_by_any_name_is_left_as_it_is_and_not_counted():
    for profile in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB, srgb_curve(), "a maker's own"),
    ):
        assert read(packed(Image.new("RGB", (8, 8), STORED), icc_profile=profile)) == (list(STORED), [])


def test_palettes_alpha_and_grey_take_part():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *STORED])
    assert read(packed(palette, icc_profile=display_p3())) == ([0, 204, 12], [P3])
    assert read(packed(palette, icc_profile=display_p3(), transparency=1))[0] == [255] * 3  # still transparent
    assert read(packed(Image.new("RGB", (8, 8), STORED), icc_profile=display_p3(), transparency=STORED))[0] == [255] * 3
    half = packed(Image.new("RGBA", (8, 8), (*STORED, 128)), icc_profile=display_p3())
    assert read(half, 4) == ([0, 204, 12, 128], [P3])
    grey = grey_profile(gamma_curve(1.8), "Gray Gamma 1.8")
    wanted = 255 * (1.055 * ((100 / 255) ** 1.8) ** (1 / 2.4) - 0.055)
    for mode, value in (("L", 100), ("LA", (100, 255))):
        pixel, notes = read(packed(Image.new(mode, (8, 8), value), icc_profile=grey), 1)
        assert abs(pixel[0] - wanted) <= 2 and notes == ["colour profile converted to sRGB: Gray Gamma 1.8"]


@pytest.mark.parametrize("profile", [b"junk" * 40, display_p3()[:300], b"x"])
def test_a_broken_profile_is_no_reason_to_lose_the_image(profile):
    assert read(packed(Image.new("RGB", (8, 8), STORED), icc_profile=profile)) == (list(STORED), [BROKEN])
    pixel, notes = read(packed(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF", icc_profile=profile))
    assert pixel == [255] * 3 and len(notes) == 1 and notes[0].endswith("read as sRGB")


def test_a_profile_of_other_colours_than_the_images_is_noted():
    assert read(packed(Image.new("L", (8, 8), 100), icc_profile=display_p3()), 1) == (
        [100],
        ["colour profile is for RGB, not for the image's colours; read as sRGB"],
    )


def test_more_than_8_bits_keep_their_values_and_say_so(monkeypatch):
    content = packed(Image.fromarray(np.full((8, 8), 40000, np.uint16)), icc_profile=grey_profile(gamma_curve(3), "G"))
    notes: list[str] = []
    assert Preprocess(1, 8, 8, bits=16).array(content, notes)[0, 0, 0] == 40000
    assert notes == ["colour profile for more than 8 bits isn't converted; read as sRGB: G"]


def test_a_tiff_beyond_pillow_says_so_too():
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((8, 8, 3), 9, np.uint16), photometric="rgb", iccprofile=display_p3())
    notes: list[str] = []
    assert (Preprocess(3, 8, 8, bits=16).array(file.getvalue(), notes) == 9).all()
    assert notes == ["colour profile for more than 8 bits isn't converted; read as sRGB: Display P3"]


def test_what_a_png_says_without_a_profile_is_noted():
    plain = packed(Image.new("RGB", (8, 8), STORED))
    srgb_primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    p3_primaries = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    linear = with_chunk(plain, b"gAMA", struct.pack(">I", 100000))
    other = "PNG's gAMA or cHRM declares another colour space; read as sRGB"
    assert read(linear) == (list(STORED), [other])
    assert read(with_chunk(plain, b"cHRM", p3_primaries)) == (list(STORED), [other])
    usual = with_chunk(with_chunk(plain, b"cHRM", srgb_primaries), b"gAMA", struct.pack(">I", 45455))
    for harmless in (usual, with_chunk(linear, b"sRGB", b"\0"), with_chunk(plain, b"cICP", bytes([1, 13, 0, 1]))):
        assert read(harmless) == (list(STORED), [])
    hdr = with_chunk(plain, b"cICP", bytes([9, 16, 0, 1]))
    assert cicp(hdr) == (9, 16)
    assert read(hdr) == (list(STORED), ["PNG's cICP declares another colour space; read as sRGB"])


def test_a_camera_that_says_adobe_rgb_in_exif_alone_is_noted():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    content = packed(Image.new("RGB", (8, 8), STORED), "JPEG", exif=exif)
    assert read(content)[1] == ["Exif declares Adobe RGB without a profile; read as sRGB"]


def test_ids_and_masks_are_no_colours():
    profile = grey_profile(gamma_curve(4), "G")
    assert (open_map(packed(Image.new("L", (8, 8), 100), icc_profile=profile)) == 100).all()
    assert (open_mask(packed(Image.new("L", (8, 8), 140), icc_profile=profile)) == 255).all()


def test_an_open_image_is_converted_once_and_the_users_own_stays_as_it_is():
    given = Image.open(io.BytesIO(packed(Image.new("RGB", (8, 8), STORED), icc_profile=display_p3())))
    assert read(given) == ([0, 204, 12], [P3])
    assert read(given.convert("RGB").resize((16, 16))) == ([0, 204, 12], [P3])
    opened = open_image(given)
    assert read(opened) == ([0, 204, 12], []) and "icc_profile" not in opened.info  # type: ignore[union-attr]
    assert given.getpixel((0, 0)) == STORED and given.info["icc_profile"] == display_p3()


def test_png_text_is_not_taken_for_a_profile():
    info = PngImagePlugin.PngInfo()
    for name in ("icc_profile", "gamma", "chromaticity", "srgb"):
        info.add_text(name, "words")
    assert read(packed(Image.new("RGB", (8, 8), STORED), pnginfo=info)) == (list(STORED), [])
