"""XMP beside images, as Lightroom, digiKam and darktable write it."""

import pytest

from ldm.data.reading.captions.embedded import text_in_xmp
from ldm.data.reading.captions.xmp import xmp_texts
from tests.data.folders import facts, lay_out, tables

LANGUAGES = (
    '<dc:description><rdf:Alt><rdf:li xml:lang="de-DE">Fuchs</rdf:li><rdf:li xml:lang="x-default">a fox &amp; a hen'
    "</rdf:li></rdf:Alt></dc:description>"
)
KEYWORDS = "<dc:subject><rdf:Bag><rdf:li>fox</rdf:li> <rdf:li> red </rdf:li></rdf:Bag></dc:subject>"


@pytest.mark.parametrize(
    ("xmp", "texts"),
    [
        (LANGUAGES + KEYWORDS, ["a fox & a hen", "fox, red"]),
        ('<rdf:Description photoshop:Headline="a &quot;fox&quot;" xmp:Rating="3"/>', ['a "fox"']),
        ("<photoshop:Headline>a fox</photoshop:Headline>", ["a fox"]),
        ('<dc:title rdf:parseType="Literal">a fox</dc:title>', ["a fox"]),
        ("<dc:description/><dc:title>a fox</dc:title>", ["a fox"]),
        ('<x:xmpmeta><rdf:Description crs:Exposure="+0.5"/></x:xmpmeta>', []),
    ],
)
def test_texts_in_xmp(xmp, texts):
    assert list(xmp_texts(xmp)) == texts


def test_names_of_cameras_are_no_captions():
    assert text_in_xmp(LANGUAGES.replace("a fox &amp; a hen", "OLYMPUS DIGITAL CAMERA") + KEYWORDS) == "fox, red"


@pytest.mark.parametrize("name", ["{}.xmp", "{}.jpg.xmp", "{}.XMP"])
def test_sidecars_are_captions(tmp_path, name):
    root = lay_out(tmp_path / "d", "0.jpg", "1.jpg", "2.jpg", "2.txt")
    for i in range(3):
        (root / name.format(i)).write_text(LANGUAGES.replace("a hen", f"{i} hens"))
    found = {n: text for table in tables(root) for n, text in zip(table.names, table.columns["text"], strict=True)}
    assert found == {"0.jpg": "a fox & 0 hens", "1.jpg": "a fox & 1 hens", "2.jpg": "2.txt"}
    assert "captions come from 1 .txt file, 3 .xmp files"[:30] in " ".join(facts(root).asides)


def test_sidecars_without_words_are_reported(tmp_path):
    root = lay_out(tmp_path / "d", "0.jpg", "1.jpg", "0.xmp", "1.xmp")
    assert "text" not in tables(root)[0].columns
    assert "2 .xmp files beside images have no description, title or keywords" in " ".join(facts(root).asides)
    assert facts(root).unread == {"XMP without a description, title or keywords": ["0.xmp", "1.xmp"]}
