"""Copies and edits of an image by their names stay on one side of the random split."""

import pytest

from ldm.data.folders.edits import MOST, with_edits_as_one
from ldm.data.reading.findings import Findings
from ldm.data.reading.paths import stem
from ldm.data.reading.sample import Sample
from tests.data.folders import facts, lay_out, names, tables


def groups(*paths: str) -> list[list[str]]:
    """The paths by image, without images that are alone."""
    name_of = with_edits_as_one([Sample(path) for path in paths], stem, Findings())
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(name_of(path), []).append(path)
    return [group for group in found.values() if len(group) > 1]


@pytest.mark.parametrize(
    "name",
    ["X-Edit.tif", "X-edited.jpg", "X (1).jpg", "X(2).jpg", "X_copy.png", "X - Copy (2).jpg", "Copy of X.jpg",
     "X - Kopie.jpg", "X copy 2.jpg", "X-Edit (1).jpg", "x-Edit-2.tif", "X-150x150.jpg", "X-scaled.jpg", "X@2x.png",
     "X~2.jpg", "X.PORTRAIT.jpg", "X-bearbeitet.jpg",
     "X (Ann's conflicted copy 2024-01-01).jpg", "X.sync-conflict-20240101-120000-ABC.jpg"],
)  # fmt: skip
def test_names_of_copies_and_edits(name):
    assert groups("a/X.jpg", f"a/{name}", "a/Y.jpg") == [["a/X.jpg", f"a/{name}"]]
    assert not groups("b/X.jpg", f"a/{name}", "a/Y.jpg"), "only beside the image"


@pytest.mark.parametrize(
    "paths",
    [
        ("IMG_0001.jpg", "IMG_E0001.jpg"),
        ("i_jpg.rf.0aa1.jpg", "i_jpg.rf.b2b2.jpg"),
        ("IMG_2024_BURST000_COVER.jpg", "IMG_2024_BURST001.jpg"),
        ("00000IMG_00000_BURST20240101_COVER.jpg", "00001IMG_00001_BURST20240101.jpg"),
    ],
)
def test_versions_that_share_a_name(paths):
    assert groups(*paths, "other.jpg") == [list(paths)]


def test_numbers_and_words_that_tell_images_apart():
    downloads = ["download.jpg", *(f"download ({i}).jpg" for i in range(1, MOST + 2))]
    assert not groups(*downloads, "Y.jpg")
    assert groups(*downloads, "download copy.jpg", "Y.jpg") == [["download.jpg", "download copy.jpg"]]
    assert not groups("cat_1.jpg", "cat_2.jpg", "cat-edited.jpg", "cats.jpg", "hdr.jpg", "1x1.jpg", "1.jpg")


def test_what_could_not_be_split_is_left_as_it_was():
    assert not groups("X.jpg", "X (1).jpg")


def test_the_split_keeps_edits_together_and_reports_it(tmp_path):
    every = [f"{i}{mark}.png" for i in range(12) for mark in ("", "-Edit", " (1)")]
    found = tables(lay_out(tmp_path / "d", *every), val_share=0.4)
    train, val = ({name.rstrip(".png").split("-")[0].split(" ")[0] for name in table.names} for table in found)
    assert not train & val and names(found) == sorted(every) and len(found[1]) == 15
    assert "24 images named like copies, edits or bursts of others" in " ".join(facts(tmp_path / "d").asides)


def test_the_split_of_other_names_stays(tmp_path):
    (tmp_path / "e").mkdir()
    plain = [f"{i}.png" for i in range(12)]
    before = tables(lay_out(tmp_path / "d", *plain), val_share=0.4)[1].names
    after = tables(lay_out(tmp_path / "e" / "d", *plain, "3-Edit.png"), val_share=0.38)[1].names
    assert [*before] == [name for name in after if "Edit" not in name]
