"""Folders as people have them: what is intended is read, and what isn't read is reported."""

import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ldm.common.errors import UserError
from ldm.data.preparing.holdout import split_off
from ldm.data.preparing.labels import class_names
from ldm.data.preparing.summary import MOST_LINES
from ldm.data.reading.findings import Findings
from ldm.data.reading.sample import Sample
from ldm.data.sources.folder import Folder
from tests.data.folders import describe, facts, lay_out, names, numbered, tables

# Classes -------------------------------------------------------------------------------------------------------------


def test_classes_are_in_natural_order(tmp_path, capsys):
    train, val = tables(lay_out(tmp_path / "d", *numbered("10", "2", "1", "3")))
    assert train.classes == val.classes == ("1", "2", "3", "10")
    for name, label in zip(train.names, train.columns["label"], strict=True):
        assert train.classes[label] == name.split("/")[0]
    assert "4 classes: 1, 2, 3, 10" in capsys.readouterr().out
    mixed = tables(lay_out(tmp_path / "m", *numbered("b10", "b9", "B1", "b009", "7")))
    assert mixed[0].classes == ("7", "B1", "b009", "b9", "b10")


def test_a_folder_around_the_classes_is_looked_through(tmp_path):
    assert tables(lay_out(tmp_path / "d", *numbered("photos/cat", "photos/dog")))[0].classes == ("cat", "dog")


def test_an_image_beside_class_folders_is_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("cat", "dog"), "cover.png")
    assert "label" not in tables(root)[0].columns
    assert "the folders cat, dog aren't read as classes" in caplog.text and "cover.png" in caplog.text


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training", "validation"),
        ("Train", "Test"),
        ("train2017", "val2017"),
        ("x/train_set", "x/dev"),
        ("trn", "valid"),
        ("train", "test1"),
        ("train", "validate"),
        ("train_256", "val_256"),
        ("train", "hold-out"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("cars_train", "cars_test"),
    ],
)
def test_split_folders_as_people_spell_them(tmp_path, train, val):
    found = tables(lay_out(tmp_path / "d", *numbered(f"{train}/a", f"{train}/b", f"{val}/a", n=2)))
    assert [len(table) for table in found] == [4, 2] and found[0].classes == ("a", "b")
    assert all(name.startswith(f"{val}/") for name in found[1].names)


def test_validation_beside_what_it_looks_like(tmp_path):
    found = tables(lay_out(tmp_path / "flat", "1.png", "2.png", "3.png", "val/4.png"))
    assert (names(found[:1]), names(found[1:])) == (["1.png", "2.png", "3.png"], ["val/4.png"])
    found = tables(lay_out(tmp_path / "classes", *numbered("a", "b", "valid/a")))
    assert found[0].classes == ("a", "b") and len(found[1]) == 3
    found = tables(lay_out(tmp_path / "words", *numbered("valid", "invalid")))
    assert found[0].classes == ("invalid", "valid"), "no split: nothing in it is as beside it"


def test_longer_names_of_splits(tmp_path):
    small = numbered("x_train_LR_bicubic/X2", "x_valid_LR_bicubic/X2")
    root = lay_out(tmp_path / "d", *numbered("x_train_HR", "x_valid_HR"), *small)
    found = tables(root)
    assert [list(table.names) for table in found] == [numbered("x_train_HR"), numbered("x_valid_HR")]
    assert set(facts(root).left_out) == set(small)
    for folders in (("trainA", "trainB", "testA", "testB"), ("cats_train", "dogs_train", "cats_val", "dogs_val")):
        root = lay_out(tmp_path / folders[0], *numbered(*folders))
        with pytest.raises(UserError, match=rf"{folders[0]}/ and {folders[1]}/ both have .* data.classes=true"):
            tables(root)
        assert tables(root, classes=True)[0].classes == tuple(sorted(folders))
        assert [len(table) for table in tables(root, without=folders[1::2])] == [3, 3]


def test_a_split_below_the_classes(tmp_path):
    paths = numbered("cats/train", "cats/val", "dogs/train", "dogs/val", "dogs/test", n=2)
    train, val = tables(lay_out(tmp_path / "d", *paths))
    assert (list(train.names), list(val.names)) == (paths[:2] + paths[4:6], paths[2:4] + paths[6:8])
    assert train.classes == val.classes == ("cats", "dogs") and val.columns["label"].tolist() == [0, 0, 1, 1]
    assert set(facts(tmp_path / "d").left_out) == set(paths[8:])
    lay_out(tmp_path / "d", *numbered("birds"))  # no split: a folder without a part for training
    assert tables(tmp_path / "d")[0].classes == ("birds", "cats", "dogs")


def test_a_split_below_the_classes_with_metadata(tmp_path):
    paths = numbered("cats/train", "cats/val", "dogs/train", "dogs/val", n=2)
    root = lay_out(tmp_path / "d", *paths)
    describe(root, *({"file_name": path, "text": path} for path in paths))
    train, val = tables(root)
    assert train.columns["text"] == paths[:2] + paths[4:6] and val.columns["text"] == paths[2:4] + paths[6:]


def test_validation_flat_beside_class_folders_is_no_class(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("cat", "dog", "val"))
    with pytest.raises(UserError, match=r"validation images, such as val/0.png, has a label.*data.without"):
        tables(root)
    assert tables(root, without=["val"])[0].classes == ("cat", "dog")
    assert tables(root, columns=["text"])[1].names == numbered("val")


@pytest.mark.parametrize(
    ("val", "others"),
    [
        (("a/val", "b/val"), ("a/train", "b/train", "c")),
        (("x/a/val", "y/b/valid"), ("x/a/train", "y/b/train")),
        (("a/images/val", "b/images/val"), ("a/images/train", "b/images/train")),
    ],
)
def test_splits_of_sets_side_by_side(tmp_path, val, others):
    train, held = tables(lay_out(tmp_path / "d", *numbered(*val, *others)))
    assert held.names == numbered(*val) and sorted(train.names) == sorted(numbered(*others))


def test_classes_within_splits_of_several_sets_are_reported(tmp_path, caplog):
    folders = [f"{root}/{part}/{name}" for root in "ab" for part in ("train", "val") for name in ("cat", "dog")]
    assert tables(lay_out(tmp_path / "d", *numbered(*folders)))[0].classes == ("a", "b")
    assert "the classes are the folders that contain a/train, b/train, not those inside (cat, dog)" in caplog.text


def test_a_training_folder_beside_an_unknown_name_is_reported(tmp_path, caplog):
    assert tables(lay_out(tmp_path / "d", *numbered("train", "prüfung")))[0].classes == ("prüfung", "train")
    assert "prüfung/, train/ are read as classes, since prüfung isn't a usual name for validation" in caplog.text
    caplog.clear()
    tables(lay_out(tmp_path / "e", *numbered("bus", "car", "train")))
    assert "usual name" not in caplog.text


def test_a_former_choice_among_splits_stays(tmp_path):
    found = tables(lay_out(tmp_path / "d", *numbered("train", "test", "holdout")))
    assert found[1].names == numbered("test")


def test_several_folders_for_validation_beside_the_classes(tmp_path):
    found = tables(lay_out(tmp_path / "d", *numbered("a", "b", "test/a", "test/b", "val/a", "val/b", n=1)))
    assert [list(table.names) for table in found] == [["a/0.png", "b/0.png"], ["val/a/0.png", "val/b/0.png"]]
    assert set(facts(tmp_path / "d").left_out) == {"test/a/0.png", "test/b/0.png"}


@pytest.mark.parametrize("way", ["inside", "relative", "link to it", "link in it", "linked files"])
def test_what_val_root_holds_is_not_trained_on(tmp_path, monkeypatch, way, caplog):
    monkeypatch.chdir(tmp_path)
    root = lay_out(tmp_path / "d", "1.png", "2.png", "3.png", "held/4.png", "held/5.png")
    val_root = {"relative": "d/held", "link to it": str(tmp_path / "link")}.get(way, str(root / "held"))
    if way == "link to it":
        (tmp_path / "link").symlink_to(root / "held")
    if way in ("link in it", "linked files"):
        (root / "held").rename(tmp_path / "elsewhere")
        val_root = str(tmp_path / "elsewhere")
    if way == "link in it":
        (root / "held").symlink_to(tmp_path / "elsewhere")
    if way == "linked files":
        (root / "held").mkdir()
        os.link(tmp_path / "elsewhere/4.png", root / "held/4.png")
        (root / "held/5.png").symlink_to(tmp_path / "elsewhere/5.png")
    train, val = tables(root, val_root=val_root)
    assert (list(train.names), list(val.names)) == (["1.png", "2.png", "3.png"], ["4.png", "5.png"])
    assert (
        f"for validation, since they are in data.val_root={val_root} (2 files: held/4.png, held/5.png)"
    ) in caplog.text


def test_one_folder_for_both_is_as_it_was(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png")
    assert [len(table) for table in tables(root, val_root=str(root))] == [2, 2]
    assert "2 images are both for training and for validation" in caplog.text


def test_folders_are_left_out_by_name_or_path(tmp_path):
    paths = numbered("a", "b/old", "c/old", "c/new", n=2)
    root = lay_out(tmp_path / "d", *paths)
    assert names(tables(root, without=["old"])) == paths[:2] + paths[6:]
    assert names(tables(root, without=["c/old/", "a"])) == paths[2:4] + paths[6:]
    describe(root, *({"file_name": path, "text": path} for path in paths))
    assert names(tables(root, without=["old"])) == paths[:2] + paths[6:]
    with pytest.raises(UserError, match=r"data.without: .* has no folder 'odl'. Did you mean 'old'"):
        tables(root, without=["odl"])


def test_images_of_neither_split_are_reported(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("train", "val", "test", "extra"))
    assert [len(table) for table in tables(root)] == [3, 3]
    assert set(facts(root).left_out) == set(numbered("test", "extra"))


def test_validation_without_its_classes_is_reported(tmp_path):
    with pytest.raises(UserError, match="none of the 3 validation images, such as val/0.png, has a label"):
        tables(lay_out(tmp_path / "d", *numbered("train/a", "train/b", "val")))


# One image, several samples ------------------------------------------------------------------------------------------


def test_several_samples_of_an_image_stay_in_one_split(tmp_path):
    root = lay_out(tmp_path / "rows", *(f"{i}.png" for i in range(8)))
    describe(root, *({"file_name": f"{i}.png", "text": f"{i} {j}"} for j in range(5) for i in range(8)))
    train, val = tables(root, val_share=0.3)
    assert (len(train), len(val)) == (30, 10) and not set(train.names) & set(val.names)
    root = lay_out(tmp_path / "formats", *(f"{i}.{kind}" for i in range(8) for kind in ("png", "jpg")))
    train, val = tables(root, val_share=0.3)
    assert not {Path(name).stem for name in train.names} & {Path(name).stem for name in val.names}
    assert len(val) == 4


def test_formats_of_an_image_in_two_folders_stay_in_one_split(tmp_path):
    folders = {"jpg": "jpg", "png_images": "png"}
    root = lay_out(tmp_path / "d", *(f"{folder}/{i}.{kind}" for i in range(8) for folder, kind in folders.items()))
    train, val = tables(root, val_share=0.3)
    assert not {Path(name).stem for name in train.names} & {Path(name).stem for name in val.names}
    assert len(val) == 4 and "label" not in train.columns
    assert "folders for formats of the same images aren't classes: jpg, png_images" in facts(root).asides[0]
    train, val = tables(lay_out(tmp_path / "x", *numbered("HR", "LR", n=8)), val_share=0.3)
    assert len(val) == 4 and not {Path(name).stem for name in train.names} & {Path(name).stem for name in val.names}
    root = lay_out(tmp_path / "e", "jpg/1.jpg", "jpg/2.jpg", "png/3.png", "png/4.png")
    assert tables(root)[0].classes == ("jpg", "png"), "no image is in both"


def test_splits_without_duplicates_are_as_they_were():
    found = [Sample(f"{i}.png") for i in range(40)]
    (_, train), (_, val) = split_off(None, found, 0.1, Findings())  # type: ignore[arg-type]
    assert [sample.image for sample in val] == ["12.png", "21.png", "22.png", "35.png"]
    assert len(train) == 36


# Captions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.txt", "{}.caption", "{}.TXT", "{}.png.txt", "{}.cap"])
def test_captions_files_as_people_call_them(tmp_path, name):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(4)), *(name.format(i) for i in range(4)))
    train, _ = tables(root)
    assert train.columns["text"] == [name.format(Path(image).stem) for image in train.names]


def test_a_caption_column_beside_a_label_is_read(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    describe(root, *({"file_name": f"{i}.png", "label": "x", "caption": f"no. {i}", "url": "u"} for i in range(4)))
    source = Folder(str(root))
    train, _ = source.tables(tmp_path / "cache")
    assert source.default_condition == "text" and set(train.columns) == {"label", "text"}
    assert train.columns["text"] == [f"no. {name[0]}" for name in train.names]
    assert not caplog.records and "columns of metadata.jsonl that aren't read: url" in facts(root).asides


def test_captions_files_beside_metadata_without_text(tmp_path):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(4)), *(f"{i}.txt" for i in range(4)))
    describe(root, *({"file_name": f"{i}.png", "label": i % 2} for i in range(4)))
    train, _ = tables(root)
    assert train.columns["text"] == [f"{name[0]}.txt" for name in train.names] and "label" in train.columns


def test_the_hint_names_the_likeliest_column_as_the_shell_takes_it(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    describe(root, *({"file_name": f"{i}.png", "by": "me", "id": 7, "it's said": f"a cat, {i}"} for i in range(4)))
    tables(root)
    hint = caplog.text.split("data.columns=")[1].split(" reads that one")[0]
    assert shlex.split(hint) == ['{text: "it\'s said"}']


def test_what_is_beside_the_images_and_not_read_is_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("images"), "captions/0.txt", "annotations/captions.json", "README.md")
    tables(root)
    assert "annotations/captions.json isn't read" in caplog.text and "1 .txt file (captions/0.txt)" in caplog.text
    assert "README" not in caplog.text


def test_a_file_is_one_caption_unless_lines_are(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    for i in range(4):
        (root / f"{i}.txt").write_bytes(b"First paragraph.\r\n\r\nSecond one.\r\n")
    assert set(tables(root)[0].columns["text"]) == {"First paragraph.\n\nSecond one."}
    assert "4 caption files with several lines, each file read as one caption" in caplog.text
    assert "data.captions=lines" in caplog.text
    caplog.clear()
    assert tables(root, captions="lines")[0].columns["text"][0] == ["First paragraph.", "Second one."]
    assert not caplog.records
    with pytest.raises(UserError, match="data.captions=line is unknown. Did you mean 'lines'"):
        Folder(str(root), captions="line")


def test_what_is_no_text_is_no_caption(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(8)))
    values = [float("nan"), None, {"a": 1}, ["a", None, float("nan")], True, 7, ["b", {"c": 1}], "nan"]
    describe(root, *({"file_name": f"{i}.png", "text": value} for i, value in enumerate(values)))
    found = {n: t for table in tables(root) for n, t in zip(table.names, table.columns["text"], strict=True)}
    assert [found[f"{i}.png"] for i in range(8)] == ["", "", "", "a", "", "7", "b", "nan"]
    assert "5 captions of metadata.jsonl" in caplog.text and "4 of 8 images have no caption" in caplog.text
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{i}.png,{'nan' if i % 2 else 'x'}\n" for i in range(8))
    )
    assert set(tables(root)[0].columns["text"]) == {"", "x"}


def test_missing_captions_are_reported_once(tmp_path, caplog):
    tables(lay_out(tmp_path / "d", "1.png", "2.png", "3.png", "1.txt"))
    assert caplog.text.count("have no caption") == 1


# What isn't an image of the set --------------------------------------------------------------------------------------


def test_formats_that_cannot_be_read_are_counted_with_the_reason(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "3.HEIC", "4.jxl", "5.heic", "6.cbz")
    tables(root)
    assert ".cbz files are archives, which aren't opened" in caplog.text
    assert ".heic files can't be read: convert them to .jpg or .png (2 files: 3.HEIC, 5.heic)" in caplog.text
    with pytest.raises(UserError, match=r"too few images \(0\).*\.heic files can't be read.*2 files"):
        tables(lay_out(tmp_path / "h", "1.heic", "2.heic"))
    for name in ("1.png", "2.png"):
        (root / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of the 2 images .* can be read: \d.png: isn't an image of a known kind"):
        tables(root, max_bad_share=0.9)


# Metadata ------------------------------------------------------------------------------------------------------------


def test_metadata_may_name_paths_from_the_root(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("train", "val"))
    for split in ("train", "val"):
        describe(root / split, *({"file_name": f"{split}/{i}.png", "text": f"{split} {i}"} for i in range(3)))
    train, val = tables(root)
    assert train.columns["text"] == ["train 0", "train 1", "train 2"] and len(val) == 3
    assert not caplog.records


def test_metadata_that_names_nothing_that_is_there(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("images", "more"))
    describe(root, {"file_name": "0.png"}, {"file_name": "1.png"})
    with pytest.raises(UserError, match=r"names '0.png', and none .* exists, but images/0.png does: file_name"):
        tables(root)


def test_pages_and_frames_beyond_the_first_are_reported(tmp_path):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "3.png")
    for name in ("4.gif", "5.tif"):
        first, *others = [Image.new("RGB", (4, 4), (60 * i, 0, 0)) for i in range(3)]
        first.save(root / name, save_all=True, append_images=others)
    tables(root)
    assert facts(root).counts == {"only the first of several pages or frames is read": 2}


def test_metadata_without_rows_is_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png")
    (root / "metadata.csv").write_text("file_name,text\n")
    tables(root)
    assert "metadata.csv has no rows" in caplog.text


# The summary and the key ---------------------------------------------------------------------------------------------


def test_the_summary_has_a_dozen_lines_and_all_in_a_file(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("a", "b", n=6), "a/0.txt", "a/1.txt", "notes.json", "b/thumbs/1.png")
    lay_out(
        root, *(f"a/x{i}.{kind}" for i, kind in enumerate(("heic", "jxl", "psd", "svg", "pdf", "mov", "nef", "dng")))
    )
    (root / "a/1.txt").write_text("two\nlines")
    (root / "b/5.png").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING, "ldm"):
        tables(root, max_bad_share=0.5)
    (record,) = caplog.records
    lines = record.getMessage().split("\n")
    assert len(lines) <= MOST_LINES and "10 images for training, 1 for validation" in lines[0]
    kept = facts(root)
    assert list(kept.bad) == ["b/5.png"] and len(kept.left_out) == 9 and len(kept.no_caption) == 9
    assert (kept.training, kept.validation, kept.captions) == (10, 1, 2)
    assert kept.several_lines == ["a/1.txt"] and kept.classes == ["a", "b"]
    caplog.clear()
    tables(root, max_bad_share=0.5)  # out of the cache
    assert [r.getMessage() for r in caplog.records] == [record.getMessage()]


def test_every_file_that_is_not_read_is_kept_by_name(tmp_path, monkeypatch):
    more = ["x.odd", "x.html", "y.html", "labels/1.txt", "notes.json", "README.md", "@eaDir/x.db", "a/1.txt", "a/1.cap"]
    root = lay_out(tmp_path / "d", *numbered("a", "b"), *more)
    tables(root)
    assert sorted(path for paths in facts(root).unread.values() for path in paths) == sorted({*more} - {"a/1.txt"})
    monkeypatch.setattr("ldm.data.preparing.summary._MOST_NAMES", 1)
    tables(root)
    assert "*.html (2 files, such as x.html)" in [name for names in facts(root).unread.values() for name in names]


def test_many_reasons_leave_the_summary_its_captions_and_classes(tmp_path, caplog):
    kinds = ["heic", "mov", "mp4", "dng", "pdf", "svg", "psd", "avi", "nef", "cr2", "xcf", "jxl"]
    root = lay_out(tmp_path / "d", *numbered("a", "b"), *(f"a/x.{kind}" for kind in kinds), "a/x.HEIC", "b/1.txt")
    tables(root)
    lines = caplog.records[0].getMessage().split("\n")
    assert "left out: .heic files can't be read" in lines[1] and "left out for 8 more reasons: 8 files" in lines[5]
    assert "  2 classes: a, b" in lines and any("captions come from 1 .txt file" in line for line in lines)
    assert len(facts(root).left_out) == 13, "all by name"


def test_a_summary_of_another_version_is_printed_again(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "1.odd")
    tables(root)
    (folder,) = (tmp_path / "cache").iterdir()
    replace(facts(root), notes=["as it was said before"]).save(folder)
    caplog.clear()
    tables(root)
    assert "as it was said" not in caplog.text and "1 .odd file (1.odd)" in caplog.text
    assert "1.odd" in facts(root).notes[0]


def test_the_split_without_a_usable_image_is_named(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("train"), "val/0.png")
    (root / "val/0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 image for validation in .* can be used \(val/0.png: is empty"):
        tables(root, max_bad_share=0.5)


def test_what_only_validation_has_is_reported(tmp_path, caplog):
    tables(lay_out(tmp_path / "d", *numbered("train", "val"), "val/0.txt"))
    assert "the validation images have captions that the training images lack, so they aren't read" in caplog.text


def test_labels_that_are_identifiers_are_no_count_of_classes(tmp_path):
    root = lay_out(tmp_path / "d", *(f"{i}.png" for i in range(6)))
    describe(root, *({"file_name": f"{i}.png", "label": (9, 10**15)[i % 2]} for i in range(6)))
    assert tables(root)[0].classes == ("9", "1000000000000000")
    assert class_names([0, 2**14 - 1]) == tuple(map(str, range(2**14))), "as before"


def test_a_clean_folder_is_summed_up_without_a_warning(tmp_path, caplog, capsys):
    tables(lay_out(tmp_path / "d", *numbered("a", "b")))
    assert not caplog.records and "5 images for training, 1 for validation" in capsys.readouterr().out


def test_a_cache_that_the_listing_before_made_is_not_served(tmp_path):
    """Of these very files the code before made the key 7a95a7447022cffd, and the classes 1, 10, 2."""
    root = lay_out(tmp_path / "d", *numbered("1", "2", "10"))
    for path in root.rglob("*.png"):
        path.write_bytes(b"P6\n4 4\n255\n" + bytes(48))
        os.utime(path, ns=(10**9, 10**9))
    made = tables(root)
    for split, table in zip(("train", "val"), made, strict=True):
        replace(table, classes=("1", "10", "2")).save(tmp_path / "cache" / "7a95a7447022cffd" / split)
    train, val = tables(root)
    assert train.key != "7a95a7447022cffd-train" and train.classes == ("1", "2", "10")
    assert val.names == ["1/0.png"], "as it was split before"


def test_what_the_listing_makes_of_the_files_is_part_of_the_key(tmp_path, monkeypatch):
    root = lay_out(tmp_path / "d", *numbered("img/10_cat"))
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    before, _ = tables(root)
    assert tables(root)[0].key == before.key
    monkeypatch.setattr("ldm.data.folders.listing.repeats_of", lambda *args: {})
    assert tables(root)[0].key != before.key


def test_images_under_other_endings_are_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "3.part", "4.nii.gz", "notes.odd")
    for name in ("5", "6.jpg_large", "7.jpg?w=3"):
        (root / name).write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    (root / "IM1").write_bytes(bytes(128) + b"DICM")
    tables(root)
    left = facts(root).left_out
    assert "by their content, but with another ending: rename them" in caplog.text and "notes.odd" not in left
    assert ".jpg" in left["6.jpg_large"] and "haven't finished" in left["3.part"] and "medical" in left["4.nii.gz"]
    assert {"5", "7.jpg?w=3", "IM1"} <= {*left} and left["5"] == left["IM1"]


def test_a_folder_of_parquet_names_what_reads_it(tmp_path):
    with pytest.raises(
        UserError, match=r" data/0.parquet isn't read: .*data=huggingface data.dataset=PATH reads .parquet"
    ):
        tables(lay_out(tmp_path / "d", "data/0.parquet"))


def test_a_stray_image_that_takes_labels_away_is_reported_beside_captions_too(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("cats", "dogs", n=2), "cats/0.txt", "dogs/1.txt", "stray.png")
    assert tables(root)[0].classes == ()
    assert "the folders cats, dogs aren't read as classes" in caplog.text and "stray.png" in caplog.text


def test_a_sound_is_no_webp(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("a", "b", n=2))
    (root / "jump.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt " + bytes(90))
    (root / "photo.large").write_bytes(b"RIFF\0\0\0\0WEBPVP8 " + bytes(90))
    tables(root)
    assert list(facts(root).left_out) == ["photo.large"]
