"""Captions inside images."""

import io

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.data.embedded import text_in
from ldm.errors import UserError
from tests.data.folders import lay_out, tables

XMP = (
    "<rdf:RDF><dc:description><rdf:Alt><rdf:li xml:lang='x-default'>a dog &amp; me</rdf:li></rdf:Alt></dc:description>"
)
A1111 = "a red fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a"
UNICODE = b"UNICODE\0" + A1111.encode("utf-16-be")


def png(**text: str) -> bytes:
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key.replace("_", "."), value)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def jpeg(tags: dict[int, object] | None = None, comment: bytes = b"") -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif.update(tags or {})
    if comment:
        exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def iptc(caption: bytes) -> bytes:
    record = b"\x1c\x02\x78" + len(caption).to_bytes(2) + caption
    record += b"\0" * (len(record) % 2)
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(record).to_bytes(4) + record
    plain = jpeg()
    return plain[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2) + block + plain[2:]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (png(parameters=A1111), "a red fox"),
        (png(Description="a cat"), "a cat"),
        (png(**{"XML:com_adobe_xmp": XMP}), "a dog & me"),
        (jpeg({0x010E: "a bird"}), "a bird"),
        (jpeg({0x010E: "OLYMPUS DIGITAL CAMERA"}), ""),
        (jpeg(comment=UNICODE), "a red fox"),
        (jpeg(comment=b"ASCII\0\0\0" + A1111.encode()), "a red fox"),
        (iptc("a café".encode()), "a café"),
        (png(), ""),
        (b"nothing", ""),
    ],
)
def test_the_caption_of_an_image(content, text):
    assert text_in(io.BytesIO(content)) == text


def test_captions_inside_are_told_and_read(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "plain.png")
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(parameters=f"fox number {i}\nSteps: 20"))
    assert "text" not in tables(root)[0].columns
    assert "3 of 4 images that were looked at hold text" in caplog.text and "data.captions=embedded" in caplog.text
    found = {
        name: text
        for t in tables(root, captions="embedded")
        for name, text in zip(t.names, t.columns["text"], strict=True)
    }
    assert found == {"plain.png": "", **{f"{i}.png": f"fox number {i}" for i in range(3)}}
    with pytest.raises(UserError, match="no text is in any of 2 images that were looked at"):
        tables(lay_out(tmp_path / "e", "1.png", "2.png"), captions="embedded")
