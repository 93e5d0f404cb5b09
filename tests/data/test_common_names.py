"""Folders and files by usual names that are hardly classes, and classes that hardly differ."""

import json
import os

import numpy as np
import pytest

from tests.data.folders import describe, facts, lay_out, names, numbered, tables


def notes(root, *paths: str, **options) -> str:
    tables(lay_out(root, *paths), **options)
    return " ".join(facts(root).notes)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("cat", "dog", "rejected"),
            "rejected/: named like folders of discarded or temporary files, and read as a class",
        ),
        (("depth", "rgb", "thermal"), "depth/: named as folders of maps or masks of other images, and read as a class"),
        (("cat", "Screenshots"), "data.without='[Screenshots]' leaves it out"),
        (("source", "target"), "source/ and target/ hold files with the same names, as pairs of images do"),
        (("A", "B"), "A/ and B/ hold files with the same names"),
        (("before", "after"), "data.pairs='{control: before}'"),
        (("cropped", "processed", "raw"), "cropped/, processed/, raw/ hold files with the same names, as versions"),
        (
            ("animals/cat", "animals/dog", "plants/oak"),
            "aren't read as classes (animals/cat, animals/dog, plants/oak)",
        ),
        (("Cat", "cat", "dog"), "classes with nearly the same name: 'Cat' and 'cat'"),
        (("maine coon", "Maine_Coon"), "'Maine_Coon' and 'maine coon'"),
    ],
)
def test_classes_that_may_not_be_classes_are_reported(tmp_path, folders, message):
    root = tmp_path / "d"
    assert message in notes(root, *numbered(*folders))
    (before,) = (root.parent / "cache").iterdir()
    tables(root)  # a second start says so too
    assert message in " ".join(facts(root).notes) and before.is_dir()


@pytest.mark.parametrize(
    "folders",
    [("cat", "dog"), ("a", "b"), ("cat/images", "dog/images"), ("cat/left", "cat/right", "dog/left", "dog/right"),
     ("cat/2023-05-12", "cat/2024-05-12", "dog/2022-01-01"), ("facebook", "twitter")],
)  # fmt: skip
def test_usual_classes_say_nothing(tmp_path, folders):
    root = tmp_path / "d"
    assert notes(root, *numbered(*folders)) == ""
    assert len(facts(root).classes) == 2


def test_what_the_user_says_of_classes_needs_no_warning(tmp_path):
    root = tmp_path / "d"
    assert notes(root, *numbered("cat", "rejected"), classes=True) == ""
    assert facts(root).classes == ["cat", "rejected"]


@pytest.mark.parametrize(
    "folders", [("Camera", "Download", "Screenshots", "WhatsApp Images"), ("Camera Roll", "Instagram")]
)
def test_albums_of_phones_are_no_classes(tmp_path, folders):
    root = lay_out(tmp_path / "d", *numbered(*folders))
    assert "label" not in tables(root)[0].columns
    assert "named as phones and computers name folders aren't classes" in facts(root).asides[0]


def test_folders_of_a_thousand_numbers_are_no_classes(tmp_path):
    root = lay_out(tmp_path / "d", *(f"0{k}000/0{k}00{i}.png" for k in range(2) for i in range(3)))
    assert "label" not in tables(root)[0].columns and "a thousand numbered images" in facts(root).asides[0]
    other = lay_out(tmp_path / "e" / "d", *(f"0{k}000/0{i}.png" for k in range(2) for i in range(3)))
    assert tables(other)[0].classes == ("00000", "01000")


def test_previews_of_models_are_left_out(tmp_path):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "a.preview.png", "m.preview.png", "m.safetensors")
    assert names(tables(root)) == ["1.png", "2.png", "a.preview.png"]
    assert facts(root).left_out == {"m.preview.png": "previews of models beside them"}


@pytest.mark.parametrize(("content", "is_table"), [("image,caption\n1.jpg,a", True), ("a cat, on a sofa", False)])
def test_tables_by_another_name_are_reported(tmp_path, content, is_table):
    root = lay_out(tmp_path / "d", "Images/1.jpg", "Images/2.jpg")
    (root / "captions.txt").write_text(content)
    tables(root)
    message = (
        "captions.txt looks like a table of images (columns: image, caption): to read it, rename it to metadata.csv"
    )
    assert (message in " ".join(facts(root).notes)) == is_table


def test_tables_of_the_same_columns_are_one_line(tmp_path):
    """Roboflow's export of images with several classes."""
    root = lay_out(tmp_path / "d", "train/1.jpg", "train/2.jpg", "valid/3.jpg")
    for split in ("train", "valid"):
        (root / split / "_classes.csv").write_text("filename, cat, dog\n1.jpg, 1, 0\n")
    tables(root)
    (note,) = facts(root).notes
    assert "train/_classes.csv, valid/_classes.csv look like tables of images (columns: filename, cat, dog)" in note
    assert "metadata.csv" in note and facts(root).unread


@pytest.mark.parametrize("line", ["images/0.png", "0.png 3", "0.jpg: a cat on a mat", "0.png,cat"])
def test_lists_of_images_are_reported(tmp_path, line):
    lay_out(tmp_path / "d", "images/0.png", "images/1.png")
    (tmp_path / "d" / "train.txt").write_text(f"{line}\n")
    assert f"train.txt looks like a list of images ({line})" in notes(tmp_path / "d")


def test_dreambooths_images_of_the_class_are_left_out(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("instance_images", "class_images"))
    found = tables(root)
    assert names(found) == numbered("instance_images") and not found[0].classes
    assert "prior_path=" in facts(root).left_out["class_images/0.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([f"train/{word}.{i}.jpg" for word in ("cat", "dog") for i in range(3)], "(3 cat, 3 dog), and aren't read"),
        ([f"{word}{i}.png" for word in ("oak", "great_elm_") for i in range(2)], "(2 great_elm, 2 oak)"),
        ([f"IMG_{i}.jpg" for i in range(4)] + [f"DSC_{i}.jpg" for i in range(4)], None),
        ([f"hero_{i}.png" for i in range(6)], None),
        (["anna1.png", "ben2.png", "cleo3.png", "dora4.png"], None),
    ],
)
def test_classes_in_the_names_of_files_are_reported(tmp_path, files, message):
    assert (message or "look like numbered classes") in notes(tmp_path / "d", *files) or message is None
    assert message or "look like numbered classes" not in " ".join(facts(tmp_path / "d").notes)


@pytest.mark.parametrize(
    ("array", "is_image"),
    [
        (np.zeros(768, np.float32), False),
        (np.zeros((4, 2, 2), np.float32), False),
        (np.zeros((4, 4, 3), np.uint8), True),
    ],
)
def test_arrays_beside_images_of_their_name(tmp_path, array, is_image):
    root = lay_out(tmp_path / "d", "0.png", "1.png", "2.png")
    for i in range(3):
        np.save(root / f"{i}.npy", array)
    train, val = tables(root)
    assert len(train) + len(val) == (6 if is_image else 3)
    assert facts(root).left_out.keys() == (set() if is_image else {"0.npy", "1.npy", "2.npy"})


def test_arrays_that_metadata_name_as_masks_are_read(tmp_path):
    root = lay_out(tmp_path / "d", "0.png", "1.png")
    for i in range(2):
        np.save(root / f"{i}.npy", np.arange(16).reshape(4, 4) > 7)
    describe(root, *({"file_name": f"{i}.png", "mask": f"{i}.npy"} for i in range(2)))
    assert np.unique(tables(root)[0].columns["mask"]).tolist() == [0, 255] and not facts(root).left_out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.nrw", b"II*\0" + bytes(200), "a camera's raw data: develop"),
        ("1.ndpi", b"II*\0" + bytes(200), "medical or scientific data"),
        ("1.xyz", b"II*\0" + bytes(200), "export them as .tif or .png"),
        ("1", b"II*\0" + bytes(200), ".tif by their content, but with another ending: rename"),
        ("1.mpo", b"\xff\xd8\xff\xe0" + bytes(200), ".jpg by their content"),
    ],
)
def test_tiffs_of_other_endings_are_distinguished(tmp_path, name, content, message):
    root = lay_out(tmp_path / "d", "0.png", "2.png")
    (root / name).write_bytes(content)
    tables(root)
    assert message in facts(root).left_out[name]


def test_folders_that_training_wrote_are_reported(tmp_path):
    warned = notes(tmp_path / "d", *numbered("cat"), "0.png", "output/1.png", "samples/2.png")
    assert "data.without='[output, samples]' leaves out folders that aren't meant as data" in warned


def test_control_images_by_words_that_are_not_known(tmp_path):
    images = [f"{i}.png" for i in range(3)]
    root = lay_out(tmp_path / "d", *images, *[f"_controls/{i}.pose.jpg" for i in range(3)])
    assert names(tables(root)) == images
    assert "in _controls/, whose files have the names of the images" in facts(root).left_out["_controls/0.pose.jpg"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("txt2img-grids/2024-01-01/grid-0001.png", "grids of generated images"),
        ("resources/derivatives/1/1_1_105_c.jpg", "in folders that programs create"),
        ("originals/0.png_original", "copies by their names"),
        ("originals/0.png~", "copies by their names"),
    ],
)
def test_what_programs_make_of_images_is_left_out(tmp_path, path, reason):
    root = lay_out(tmp_path / "d", *numbered("originals"), path)
    assert names(tables(root)) == numbered("originals")
    assert reason in facts(root).left_out[path]


def test_folders_of_generators_are_no_classes(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("txt2img-images/2024-01-01", "extras-images"))
    assert not tables(root)[0].classes


def test_a_grid_beside_the_samples_that_it_shows_is_left_out(tmp_path):
    samples = [f"txt2img-samples/samples/0000{i}.png" for i in range(3)]
    root = lay_out(tmp_path / "d", *samples, "txt2img-samples/grid-0000.png")
    assert names(tables(root)) == samples
    assert facts(root).left_out == {"txt2img-samples/grid-0000.png": "grids of generated images"}
    plain = [f"grid-000{i}.png" for i in range(3)]
    assert names(tables(lay_out(tmp_path / "e" / "d", *plain))) == plain


def test_names_that_are_not_utf8_are_kept_in_json_that_every_program_reads(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("cat"), "dog/0.png", "dog/1.png")
    try:
        (root / "dog").rename(os.fsdecode(bytes(root) + b"/d\xff"))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    tables(root)
    (file,) = (root.parent / "cache").glob("*/skipped.json")
    assert json.loads(file.read_bytes().decode("utf-8"))["classes"] == facts(root).classes == ["cat", "d\udcff"]
