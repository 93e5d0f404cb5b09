"""Captions in the names of images."""

import pytest

from ldm.common.errors import UserError
from ldm.data.reading.captions.names import caption_in_name
from tests.data.folders import facts, lay_out, tables

SENTENCES = ("a red cat on a mat", "me_two_birds_over_a_lake_0c1d", "a blue dog in the sun")


@pytest.mark.parametrize(
    ("path", "caption"),
    [
        ("a/a_photo_of_a_cat_001.jpg", "a photo of a cat"),
        ("a group of 12.png", "a group of 12"),
        ("me_a_dog_1f2e3d4c-1111-2222-3333-444455556666.png", "me a dog"),
        ("a house, facade_7c09fa2.png", "a house, facade"),
        ("two birds (3).png", "two birds"),
        ("0001.png", ""),
    ],
)
def test_the_caption_in_a_name(path, caption):
    assert caption_in_name(path) == caption


def test_captions_in_names_are_reported_and_read(tmp_path):
    root = lay_out(tmp_path / "d", *[f"{name}.png" for name in SENTENCES])
    assert "text" not in tables(root)[0].columns
    message = "the images' names look like captions (a blue dog in the sun), which aren't read: data.captions=names"
    assert message in facts(root).notes[0]
    found = {text for table in tables(root, captions="names") for text in table.columns["text"]}
    assert found == {"a red cat on a mat", "me two birds over a lake 0c1d", "a blue dog in the sun"}


def test_a_caption_beside_an_image_comes_before_its_name(tmp_path):
    root = lay_out(tmp_path / "d", "a cat_1.png", "a cat_2.png", "a cat_1.txt")
    found = tables(root, captions="names")
    texts = {name: t for table in found for name, t in zip(table.names, table.columns["text"], strict=True)}
    assert texts == {"a cat_1.png": "a cat_1.txt", "a cat_2.png": "a cat"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"frame of a long film {i}" for i in range(9)] + [*SENTENCES], ""),
        ([f"1a79a4d60de{i}718e8e5b326e338ae533" for i in range(4)], ""),
        ([f"a photo of a {word}_{i}" for word in ("cat", "dog") for i in range(3)], "names look like captions"),
    ],
)
def test_names_that_several_images_share(tmp_path, names, message):
    root = lay_out(tmp_path / "d", *[f"{name}.png" for name in names])
    tables(root)
    notes = " ".join(facts(root).notes)
    assert message in notes and "look like numbered classes" not in notes and bool(message) == bool(notes)


def test_names_without_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="none of the 2 images has words in its name"):
        tables(lay_out(tmp_path / "d", "1.png", "2.png"), captions="names")
