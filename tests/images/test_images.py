import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.images import BadImage, Preprocess, ReadOptions, grid, open_image, open_map, open_mask, probe, save_png


def png(shown_image: Image.Image, **options) -> bytes:
    return packed(shown_image, "PNG", **options)


def packed(shown_image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    shown_image.save(file, format=format, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def halves(left, right, mode="RGB", size=(8, 4)) -> Image.Image:
    """An image whose left half has one colour and whose right half another."""
    shown_image = Image.new(mode, size, left)
    shown_image.paste(right, (size[0] // 2, 0, *size))
    return shown_image


def colour_png_16() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">12H", *range(100, 60100, 5000)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_rgb_keeps_its_values_and_channels_come_first():
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    array = Preprocess(3, 4, 6).array(png(Image.fromarray(values)))
    assert array.dtype == np.uint8 and array.shape == (3, 4, 6)
    np.testing.assert_array_equal(array, values.transpose(2, 0, 1))


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    content = packed(halves((255, 0, 0), (0, 0, 255)), "JPEG", quality=100, subsampling=0, exif=exif)
    array = Preprocess(3, 8, 4, resize="none").array(content)  # refuses the unturned size
    assert probe(io.BytesIO(content))[:2] == (8, 4)
    assert array[0, :4].min() > 200 > 60 > array[0, 4:].max()  # the left half, red, is on top
    assert array[2, 4:].min() > 200


def test_cmyk_is_read_as_its_colours():
    shown_image = halves((255, 0, 0, 0), (0, 255, 255, 0), "CMYK")  # cyan, red
    for content in (packed(shown_image, "JPEG", quality=100, subsampling=0), packed(shown_image, "TIFF")):
        array = Preprocess(3, 4, 8).array(content)
        np.testing.assert_allclose(array[:, 1, 1], (0, 255, 255), atol=6)
        np.testing.assert_allclose(array[:, 1, 6], (255, 0, 0), atol=6)


def test_palette_gives_its_colours_and_its_transparency():
    shown_image = Image.new("P", (8, 4), 0)
    shown_image.putpalette([10, 20, 30, 200, 100, 50])
    shown_image.paste(1, (4, 0, 8, 4))
    array = Preprocess(3, 4, 8).array(png(shown_image))
    assert array[:, 0, 0].tolist() == [10, 20, 30] and array[:, 0, 7].tolist() == [200, 100, 50]
    see_through = Preprocess(3, 4, 8, background=[0, 255, 0]).array(png(shown_image, transparency=0))
    assert see_through[:, 0, 0].tolist() == [0, 255, 0] and see_through[:, 0, 7].tolist() == [200, 100, 50]


def test_alpha_is_laid_on_the_background_or_kept_as_a_channel():
    content = png(halves((255, 0, 0, 255), (255, 0, 0, 0), "RGBA"))
    assert Preprocess(3, 4, 8).array(content)[:, 0, 7].tolist() == [255, 255, 255]
    assert Preprocess(3, 4, 8, background=[7]).array(content)[:, 0, 7].tolist() == [7, 7, 7]
    assert Preprocess(1, 4, 8).array(content)[0, 0].tolist() == [76] * 4 + [255] * 4
    assert Preprocess(4, 4, 8).array(content)[3, 0].tolist() == [255] * 4 + [0] * 4


def test_16_bit_grey_png_keeps_all_bits_and_scales_to_8():
    values = np.array([[0, 1, 257, 40000, 65535]], np.uint16)
    content = png(Image.fromarray(values))
    assert probe(io.BytesIO(content)) == (1, 5, 1, 16)
    np.testing.assert_array_equal(Preprocess(1, 1, 5, bits=16).array(content)[0], values)
    assert Preprocess(1, 1, 5).array(content)[0].tolist() == [[0, 0, 1, 156, 255]]
    assert Preprocess(3, 1, 5).array(content)[:, 0, 3].tolist() == [156] * 3
    as_16 = Preprocess(1, 1, 2, bits=16).array(np.array([[0, 255]], np.uint8))
    assert as_16.tolist() == [[[0, 65535]]]


def test_16_bit_colour_png_opened_by_pillow_is_refused_where_its_bits_would_be_lost():
    with pytest.raises(BadImage, match="which Pillow reduces to 8: give the file itself"):
        Preprocess(3, 4, 4, bits=16).array(Image.open(io.BytesIO(colour_png_16())))
    assert Preprocess(3, 4, 4, bits=16).array(colour_png_16()).dtype == np.uint16
    assert Preprocess(3, 4, 4).array(colour_png_16()).shape == (3, 4, 4)


@pytest.mark.parametrize("channels_first", [True, False])
def test_npy_holds_any_number_of_channels(channels_first):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 9), dtype=np.uint16)
    content = npy(values if channels_first else values.transpose(1, 2, 0))
    assert probe(io.BytesIO(content)) == (7, 9, 5, 16)
    np.testing.assert_array_equal(Preprocess(5, 7, 9, bits=16).array(content), values)


@pytest.mark.parametrize(("shape", "channels"), [((24, 24, 30), 30), ((30, 24, 24), 30), ((14, 14, 20), 20)])
def test_channels_that_look_like_rows_have_to_be_given(shape, channels):
    content = npy(np.zeros(shape, np.uint8))
    with pytest.raises(
        BadImage, match=rf"any of its axes may be the channels: give their number as data.channels= .*{channels}"
    ):
        probe(io.BytesIO(content))
    side = min(shape)
    assert probe(io.BytesIO(content), channels) == (side, side, channels, 8)


def test_pages_that_become_channels_are_reported(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="the extra `tiff`")
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((5, 16, 14), np.uint8), photometric="minisblack")
    notes: list[str] = []
    open_image(tmp_path / "x.tif", notes=notes)
    assert notes == ["several grey pages, each read as a channel (save one page alone to read only that)"]


def test_floats_need_their_range():
    values = np.array([[-1.0, 0.0, 1.0, 9.0]], np.float32)
    with pytest.raises(BadImage, match="data.low= and data.high="):
        Preprocess(1, 1, 4).array(npy(values))
    assert Preprocess(1, 1, 4, low=-1, high=1).array(npy(values)).tolist() == [[[0, 128, 255, 255]]]
    with pytest.raises(BadImage, match="not numbers"):
        Preprocess(1, 1, 4, low=-1, high=1).array(np.full((1, 4), np.nan))


def test_pickled_npy_is_refused():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadImage):
        open_image(file.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("channels", [2, 3, 5])
def test_tiff_holds_any_number_of_channels(tmp_path, layout, dtype, channels):
    tifffile = pytest.importorskip("tifffile", reason="the extra `tiff`")
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (channels, 16, 14), dtype=dtype)
    how = {} if layout == "pages" else {"planarconfig": layout}
    stored = values.transpose(1, 2, 0) if layout == "contig" else values
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack", **how)
    bits = 8 * values.itemsize
    assert probe(tmp_path / "x.tif") == (16, 14, channels, bits)
    np.testing.assert_array_equal(Preprocess(channels, 16, 14, bits=bits).array(tmp_path / "x.tif"), values)


def test_a_tiff_beyond_pillow_needs_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    pages = [Image.new("L", (4, 4), value) for value in range(5)]
    with pytest.raises(BadImage, match="pip install tifffile"):
        open_image(packed(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert isinstance(open_image(packed(Image.new("RGB", (4, 4)), "TIFF")), Image.Image)


def test_the_first_page_of_a_scan_is_read():
    pages = [Image.new("1", (8, 8), value) for value in (255, 0)]
    notes: list[str] = []
    content = packed(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="group4")
    assert (Preprocess(3, 8, 8).array(content, notes) == 255).all()
    assert notes == ["only the first of several pages or frames is read"] and probe(io.BytesIO(content)) == (8, 8, 1, 8)


def test_cover_crops_the_centre_and_contain_shows_all():
    shown_image = Image.new("RGB", (12, 4), (0, 0, 255))
    shown_image.paste((255, 0, 0), (4, 0, 8, 4))  # the middle third
    cover = Preprocess(3, 4, 4).array(shown_image)
    assert (cover[0] == 255).all() and (cover[2] == 0).all()
    contain = Preprocess(3, 12, 12, resize="contain", background=[9, 8, 7]).array(shown_image)
    assert contain[:, 0, 0].tolist() == [9, 8, 7] and contain[:, 6, 0].tolist() == [0, 0, 255]
    stretch = Preprocess(3, 6, 24, resize="stretch").array(shown_image)
    assert stretch[0, 3, 9:15].min() > 200 and stretch[0, 3, :7].max() < 50 and stretch[0, 3, 17:].max() < 50
    with pytest.raises(BadImage, match="4x12"):
        Preprocess(3, 4, 4, resize="none").array(shown_image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_shrinking_is_antialiased(dtype):
    top = np.iinfo(dtype).max
    stripes = np.zeros((64, 64), dtype)
    stripes[:, ::2] = top
    array = Preprocess(1, 8, 8, bits=8 * np.dtype(dtype).itemsize).array(stripes)
    assert array.dtype == dtype
    assert abs(array.astype(float) / top - 0.5).max() < 0.05  # nearest neighbour would give 0 or 1


def test_maps_follow_the_crop_and_their_ids_are_never_mixed():
    ids = np.zeros((4, 12), np.uint8)
    ids[:, 4:8] = 200
    ids[:, 8:] = 3
    shown_image = Image.fromarray(ids)
    process = Preprocess(1, 8, 8)
    moved = process.resize_map(ids)
    assert moved.shape == (8, 8) and moved.dtype == np.uint8
    assert set(np.unique(moved)) == {200}
    np.testing.assert_array_equal(moved > 100, process.array(shown_image)[0] > 100)
    wide = Preprocess(1, 9, 23, resize="stretch").resize_map(ids)
    assert set(np.unique(wide)) == {0, 3, 200}
    assert Preprocess(1, 12, 12, resize="contain").resize_map(ids)[0].tolist() == [0] * 12


def test_map_files_give_ids_and_refuse_what_would_blur_them():
    shown_image = Image.new("P", (4, 4), 5)
    shown_image.putpalette([i for i in range(256) for _ in range(3)][::-1])
    assert (open_map(png(shown_image)) == 5).all()  # the index, not the colour
    assert (open_map(png(Image.new("RGB", (4, 4), (3, 3, 3)))) == 3).all()
    for content in (png(Image.new("RGB", (4, 4), (3, 4, 3))), packed(Image.new("L", (4, 4), 3), "JPEG")):
        with pytest.raises(BadImage, match="ids"):
            open_map(content)
    with pytest.raises(BadImage, match="0 to 255"):
        open_map(npy(np.full((4, 4), 300)))


@pytest.mark.parametrize(
    "content",
    [
        png(halves(0, 255, "L")),
        png(halves(0, 1, "L")),
        png(halves(0, 1, "1")),
        npy(np.arange(8)[None].repeat(4, 0) >= 4),
        npy((np.arange(8)[None].repeat(4, 0) >= 4).astype(np.uint16) * 65535),
        packed(halves(20, 230, "L", (16, 16)).resize((8, 4)), "JPEG", quality=100),
    ],
    ids=["255", "1", "bit", "bool", "16bit", "jpeg"],
)
def test_masks_are_cut_at_half(content):
    assert open_mask(content).tolist() == [[0] * 4 + [255] * 4] * 4


def indexed(left: int, right: int, *colours: tuple[int, int, int]) -> Image.Image:
    """A palette image of two indices; `colours` are those of the lowest."""
    shown_image = halves(left, right, "P")
    shown_image.putpalette([value for colour in colours for value in colour])
    return shown_image


@pytest.mark.parametrize(
    "content",
    [
        png(halves(0, 3, "L")),
        png(Image.fromarray(np.repeat([[0, 1000]], 4, 1).repeat(4, 0).astype(np.uint16))),
        png(indexed(0, 1, (0, 0, 0), (128, 0, 0))),
        png(indexed(1, 0, (255, 255, 255), (0, 0, 0))),
        png(indexed(1, 2, (9, 0, 0), (9, 9, 0), (0, 0, 9))),
        png(halves((0, 0, 0), (255, 0, 0))),
        png(halves((0, 0, 255), (0, 255, 0))),
        png(halves((0, 0, 0, 0), (0, 0, 0, 255), "RGBA")),
        png(halves((9, 9, 9, 0), (255, 255, 255, 90), "RGBA")),
        packed(halves((0, 0, 0), (255, 0, 0), size=(16, 4)).resize((8, 4)), "JPEG", quality=100),
    ],
    ids=["grey03", "16bit", "palette", "grey-palette", "indices", "red", "colours", "alpha", "by-alpha", "red-jpeg"],
)
def test_masks_of_two_kinds_need_no_white(content):
    notes: list[str] = []
    assert open_mask(content, notes).tolist() == [[0] * 4 + [255] * 4] * 4 and notes == []


@pytest.mark.parametrize(
    ("rows", "mode", "masked", "message"),
    [
        ([0, 0, 0], "L", [0, 0, 0], "entirely black"),
        ([1, 1, 1], "L", [1, 1, 1], "entirely white"),
        ([0, 15, 255], "L", [0, 0, 1], "above half"),
        ([0, 128, 255], "L", [0, 1, 1], None),
        ([1, 3, 3], "L", [0, 1, 1], "in a trimap 1 is the object"),
        ([100, 200, 200], "L", [0, 1, 1], None),
        ([(0, 0, 0), (9, 240, 9), (200, 9, 9)], "RGB", [0, 1, 0], "several colours"),
    ],
)
def test_what_a_mask_may_mean_otherwise_is_reported(rows, mode, masked, message):
    shown_image = Image.new(mode, (3, 1))
    shown_image.putdata(rows)
    notes: list[str] = []
    assert (open_mask(png(shown_image), notes) > 0).astype(int).tolist() == [masked]
    assert [message in note for note in notes] == ([True] if message else [])


def test_a_trimap_of_small_numbers_is_refused_and_palettes_of_several_are_masked_but_for_black():
    trimap = Image.fromarray(np.array([[1, 2, 3]], np.uint8))
    with pytest.raises(BadImage, match="values 1, 2, 3, which don't show what is masked: write 255"):
        open_mask(png(trimap))
    shown_image = indexed(0, 1, (0, 0, 0), (128, 0, 0), (0, 128, 0))
    shown_image.putpixel((7, 0), 2)
    notes: list[str] = []
    assert open_mask(png(shown_image), notes).tolist() == [[0] * 4 + [255] * 4] * 4
    assert notes == ["mask with a palette of several colours: everything but black is masked"]


def test_what_cannot_be_read_names_its_file(tmp_path):
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    for name, content in {"cut.png": whole[:1500], "text.jpg": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=name):
            Preprocess(3, 8, 8).array(tmp_path / name)
    with pytest.raises(BadImage, match="nowhere.png"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "five.npy").write_bytes(npy(np.zeros((8, 8, 5), np.uint8)))
    with pytest.raises(BadImage, match="five.npy: has 5 channels where 3"):
        Preprocess(3, 8, 8).array(tmp_path / "five.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(600), "is HEIC, which isn't read: convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "is a video"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">\n</svg>', "is SVG"),
        (b"<!DOCTYPE html>\n<html><body>403</body></html>", "is a web page with an image's name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (bytes(2000), "is full of zeros"),
        (b"hello", "isn't an image of a known kind"),
    ],
)
def test_what_is_no_image_is_named_by_its_content(tmp_path, content, message):
    path = tmp_path / "IMG_1.jpg"  # as phones and downloads have it
    path.write_bytes(content)
    for read in (open_image, probe):
        with pytest.raises(BadImage, match=f"IMG_1.jpg: {message}" if message[:2] == "is" else message):
            read(path)


def test_avif_without_its_decoder_is_named(monkeypatch):
    avif = pytest.importorskip("PIL.AvifImagePlugin")
    if not avif.SUPPORTED:
        pytest.skip("this Pillow can't make one")
    content = packed(Image.new("RGB", (8, 8)), "AVIF")
    monkeypatch.setattr(avif, "SUPPORTED", False)
    with pytest.raises(BadImage, match="is AVIF, which this Pillow doesn't read"), pytest.warns(UserWarning):
        open_image(content)


def test_decompression_bombs_are_refused():
    assert ReadOptions().max_pixels == 2**27
    with pytest.raises(BadImage, match="too many"):
        open_image(png(Image.new("L", (64, 64))), ReadOptions(max_pixels=1000))


def jpeg_of(*segments: bytes) -> bytes:
    plain = packed(Image.new("RGB", (8, 8)), "JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(*chunks: bytes) -> bytes:
    """With chunks before the pixels."""
    plain = png(Image.new("L", (8, 8)))
    return plain[:33] + b"".join(chunks) + plain[33:]


def gif_of(*blocks: bytes) -> bytes:
    plain = packed(Image.new("L", (8, 8)), "GIF")
    begin = plain.index(b",\0\0\0\0")
    return plain[:begin] + b"".join(blocks) + plain[begin:]


EXIF = segment(0xE1, b"Exif\0\0" + b"x" * 60_000)
LONG = [
    ("jpeg of much exif", jpeg_of(*[EXIF] * 80), "4096 kB of metadata"),
    ("jpeg of padding", jpeg_of(b"\xff" * 20_000), "pieces"),
    ("jpeg of junk", jpeg_of(b"\xff\0" * 20_000), "pieces"),
    ("jpeg of empty segments", jpeg_of(segment(0xFE, b"") * 20_000), "pieces"),
    ("png of exif", png_of(chunk(b"eXIf", b"II*\0" + b"x" * 2**22)), "4096 kB of metadata"),
    ("png of text", png_of(*[chunk(b"tEXt", b"a\0" + b"x" * 500_000)] * 9), "4096 kB of metadata"),
    ("png of empty chunks", png_of(chunk(b"tEXt", b"a\0") * 20_000), "pieces"),
    ("gif of a long comment", gif_of(b"!\xfe" + (b"\xff" + b"x" * 255) * 300 + b"\0"), "64 kB of metadata"),
    ("gif of short comments", gif_of(b"!\xfe\1x\0" * 20_000), "pieces"),
]


@pytest.mark.parametrize("content,message", [one[1:] for one in LONG], ids=[one[0] for one in LONG])
def test_what_pillow_takes_long_to_open_is_refused_before(monkeypatch, content, message):
    monkeypatch.setattr(Image, "open", None)
    for read in (open_image, open_map, lambda content: probe(io.BytesIO(content))):
        with pytest.raises(BadImage, match=message):
            read(content)


def test_usual_metadata_is_read_as_before():
    colours = segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)) * 100  # 6 MB that Pillow reads at once
    contents = [jpeg_of(EXIF, colours, b"\xff" * 9), png_of(chunk(b"tEXt", b"a\0" + b"x" * 500_000))]
    contents += [gif_of(b"!\xfe\3abc\0"), packed(Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[])]
    frames = [Image.new("L", (8, 8), i) for i in range(3)]
    contents.append(packed(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    for content in contents:
        assert np.asarray(open_image(content)).shape[:2] == (8, 8) and probe(io.BytesIO(content))[:2] == (8, 8)


def test_fewer_pixels_may_be_requested():
    content = png(Image.new("L", (2000, 1001)))
    assert open_image(content, ReadOptions(max_pixels=2_002_000)).size == (2000, 1001)
    with pytest.raises(BadImage, match=r"has 2000x1001 pixels, .* \(up to 2 million are read\)"):
        open_image(content, ReadOptions(max_pixels=2_001_999))


def test_big_jpegs_are_decoded_small_with_the_same_result():
    x = np.linspace(0, 255, 1024)
    shown_image = Image.fromarray(
        np.stack([x[None].repeat(1024, 0), x[:, None].repeat(1024, 1)], 2).mean(2).astype(np.uint8)
    )
    content = packed(shown_image, "JPEG", quality=95)
    process = Preprocess(1, 32, 32)
    drafted = process.open(content)
    assert max(drafted.size) < 1024  # type: ignore[union-attr]
    difference = process.array(content).astype(int) - process.array(shown_image)
    assert abs(difference).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_survives_the_way_to_tensor_and_back(bits):
    process = Preprocess(1, 1, 2**bits, bits=bits)
    levels = np.arange(2**bits).astype(process.dtype)[None, None]
    for given in (levels, torch.from_numpy(levels)):
        tensor = process.to_tensor(given)
        assert tensor.dtype == torch.float32 and tensor.min() == -1 and tensor.max() == 1
        np.testing.assert_array_equal(process.to_uint(tensor).numpy(), levels)
    beyond = process.to_uint(torch.tensor([-3.0, 3.0]))
    assert beyond.tolist() == [0, 2**bits - 1]


def test_to_tensor_leaves_its_input_alone():
    given = np.arange(8, dtype=np.uint8)
    Preprocess().to_tensor(given)
    assert given.tolist() == list(range(8))


def test_to_pil_shows_grey_colour_and_the_first_three_of_more():
    image = torch.rand(5, 4, 6) * 2 - 1
    assert Preprocess(1).to_pil(image[:1]).mode == "L"
    shown = np.asarray(Preprocess(5).to_pil(image))
    np.testing.assert_array_equal(shown.transpose(2, 0, 1), Preprocess().to_uint(image[:3]).numpy())
    deep = Preprocess(1, bits=16)
    np.testing.assert_array_equal(np.asarray(deep.to_pil(image[:1])), deep.to_uint(image[0]).numpy())


def test_grid_lays_images_out_row_by_row():
    images = torch.full((5, 3, 4, 6), -1.0)
    images[3, 0] = 1  # red: second row, first column
    sheet = np.asarray(grid(images, 3))
    assert sheet.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    assert sheet[2 + 6, 2].tolist() == [255, 0, 0]
    assert sheet[2, 2].tolist() == [0, 0, 0]
    assert (sheet[:2] == 255).all() and (sheet[8:, 18:] == 255).all()  # gaps and the missing sixth are white


def test_png_text_comes_back_whatever_the_language(tmp_path):
    text = {"prompt": "un été, 猫 قط", "seed": 3}
    save_png(Image.new("RGB", (2, 2)), tmp_path / "a" / "x.png", text)
    with Image.open(tmp_path / "a" / "x.png") as shown_image:
        assert isinstance(shown_image, PngImagePlugin.PngImageFile)
        assert shown_image.text == {"prompt": "un été, 猫 قط", "seed": "3"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.png"]


def test_the_spec_makes_the_same_preprocessing():
    process = Preprocess(5, 12, 20, bits=16, resize="contain", background=[3], low=0, high=4095)
    again = build(spec_of(process))
    values = np.random.default_rng(0).integers(0, 4096, (30, 40, 5), dtype=np.uint16)
    np.testing.assert_array_equal(again.array(values), process.array(values))
    assert again.shape == (5, 12, 20)


@pytest.mark.parametrize(
    "wrong",
    [{"resize": "covr"}, {"bits": 12}, {"channels": 0}, {"low": 1}, {"low": 2, "high": 1}, {"background": [1, 2]}],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError):
        Preprocess(**wrong)


def tiff(array: np.ndarray, **options) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="the extra `tiff`")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def test_a_tiff_whose_white_is_zero_is_inverted_at_every_depth():
    grey = np.arange(12).reshape(3, 4)
    deep = tiff((grey * 1000).astype(np.uint16), photometric="miniswhite")
    assert (np.asarray(open_image(deep)) == 65535 - grey * 1000).all()
    assert (np.asarray(open_image(tiff(grey.astype(np.uint8), photometric="miniswhite"))) == 255 - grey).all()
    wide = tiff((grey * 1000).astype(np.uint32), photometric="miniswhite")
    assert (np.asarray(open_image(wide)) == 2**32 - 1 - grey * 1000).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_tiffs_beyond_pillow_are_turned_as_others_are(orientation):
    colours = (np.arange(18).reshape(3, 2, 3) * 257).astype(np.uint16)
    deep = tiff(colours, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    flat = png(Image.fromarray((colours // 257).astype(np.uint8)), exif=exif)
    assert (open_image(deep) // 257 == np.asarray(open_image(flat))).all()
    assert probe(io.BytesIO(deep))[:2] == probe(io.BytesIO(flat))[:2]


@pytest.mark.parametrize(("photometric", "channels", "space"), [("separated", 4, "CMYK"), (8, 3, "Lab")])
def test_tiffs_of_16_bits_in_other_colours_are_refused(photometric, channels, space):
    with pytest.raises(BadImage, match=f"is a TIFF of {space} with 16 bits, which isn't converted: save it as RGB"):
        open_image(tiff(np.zeros((4, 4, channels), np.uint16), photometric=photometric))


def test_a_fourth_band_is_read_where_four_are_wanted_and_reported_where_not():
    bands = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    content = tiff(bands, photometric="rgb", extrasamples=["unspecified"])
    assert (Preprocess(4, 4, 4).array(content) == bands.transpose(2, 0, 1)).all()
    assert probe(io.BytesIO(content), 4)[2] == 4
    notes: list[str] = []
    assert (Preprocess(3, 4, 4).array(content, notes) == bands.transpose(2, 0, 1)[:3]).all()
    assert notes == ["the fourth channel of a TIFF isn't read; data.channels=4 reads it"]


@pytest.mark.parametrize(("background", "name"), [(None, "white"), ([0], "black"), ([0, 0, 9], "the colour")])
def test_transparency_that_is_laid_on_a_colour_is_reported(background, name):
    notes: list[str] = []
    process = Preprocess(3, 4, 4, background=background)
    process.array(png(Image.new("RGBA", (4, 4), (0, 0, 0, 255))), notes)
    assert notes == []
    process.array(png(Image.new("RGBA", (4, 4), (0, 0, 0, 9))), notes)
    assert len(notes) == 1 and notes[0].startswith(f"transparency blended with {name}")


@pytest.mark.parametrize("top", [1023, 65535])
def test_a_ppm_of_more_than_8_bits_is_known_to_be_reduced(top):
    content = b"P6\n4 4\n%d\n" % top + bytes(96)
    assert open_image(content).info["ldm_cut_to_8_bits"]
    assert not open_image(b"P6\n4 4\n255\n" + bytes(48)).info["ldm_cut_to_8_bits"]
    with pytest.raises(BadImage, match="PNG or PPM of 16 bits"):
        Preprocess(3, 4, 4, bits=16).array(open_image(content))


def test_raw_data_of_a_camera_called_tif_are_refused_for_their_preview():
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(np.zeros((4, 6, 3), np.uint8), subifds=1, subfiletype=1)
        tiff.write(np.zeros((40, 60), np.uint16))
    with pytest.raises(BadImage, match="is a camera's raw data, which begins with a preview"):
        open_image(file.getvalue())
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:  # a pyramid begins with the whole
        tiff.write(np.full((40, 60, 3), 7, np.uint8), subifds=1)
        tiff.write(np.zeros((4, 6, 3), np.uint8), subfiletype=1)
    assert np.asarray(open_image(file.getvalue())).shape == (40, 60, 3)


def test_the_readers_of_tiffs_say_nothing_of_their_own(caplog):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8, 13), np.uint16), planarconfig="contig", photometric="minisblack")
    assert Preprocess(13, 8, 8, 16).array(file.getvalue()).shape == (13, 8, 8)
    assert not caplog.records


def test_no_other_program_draws_what_is_read():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"
    for read in (open_image, lambda content: probe(io.BytesIO(content))):
        with pytest.raises(BadImage, match="is EPS, which only another program can render: save it as .png"):
            read(eps)
