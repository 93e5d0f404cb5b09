"""Which folders are classes."""

import pytest

from ldm.common.errors import UserError
from ldm.data.folders.classes import classes_of, image_of
from ldm.data.preparing.holdout import split_off
from ldm.data.reading.findings import Findings
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store
from tests.data.folders import facts, lay_out, numbered, tables


@pytest.mark.parametrize(
    "folders",
    [
        ["DCIM/100APPLE", "DCIM/101APPLE"],
        ["100APPLE", "101_PANA"],
        ["DCIM/202401__", "DCIM/202402_a", "DCIM/202402_b"],
        ["202401__", "202402_a"],
        ["DCIM/Camera", "Pictures/Screenshots", "WhatsApp"],
        ["DCIM/Camera", "DCIM/Facebook"],
        ["DCIM/10030401", "DCIM/10130405"],
        ["2023-05-12", "2023-06-01 Berlin"],
        ["2023_05_holiday", "2023_06_work"],
        ["20230512_trip", "20230601"],
        ["12_05_2024", "14_05_2024"],
        ["Photos from 2019", "Photos from 2020"],
        ["2022/2022-12-31", "2023/2023-01-01"],
        ["2022/12", "2023/01 Berlin"],
        ["2024/01", "2024/02"],
        ["Fotos von 2019", "Trip to Rome"],
        ["fold0", "fold1"],
    ],
)
def test_folders_of_cameras_phones_and_dates_are_no_classes(tmp_path, folders):
    root = lay_out(tmp_path / "d", *numbered(*folders))
    assert not tables(root)[0].columns
    assert "aren't classes" in facts(root).asides[0]


@pytest.mark.parametrize(
    "names",
    [
        [f"{name[:2]}/{name}" for name in ("3fa85f64", "3fb85f64", "c12de0aa", "0912aaee")],
        [f"{name[0]}/{name}" for name in ("3FA85F64-5717-4562", "C3B85F64-5717-4562", "C12DE0AA-5717-4562")],
        [f"{i % 1000:04}/{i}" for i in range(1234998, 1235002)],
    ],
)
def test_folders_over_which_files_are_distributed_are_no_classes(tmp_path, names):
    root = lay_out(tmp_path / "d", *[f"{name}.png" for name in names])
    assert not tables(root)[0].columns
    assert "into which a program has distributed files aren't classes" in " ".join(facts(root).asides)


@pytest.mark.parametrize(
    "folders",
    [["12345678", "23456789"], ["1999", "2000"], ["2023-13", "2023-14"], ["n01440764", "n01443537"],
     ["2023-05-12", "cats"], ["20230512", "20239999"], ["00001", "00002"]],
)  # fmt: skip
def test_classes_that_look_a_little_so(tmp_path, folders):
    assert tables(lay_out(tmp_path / "d", *numbered(*folders)))[0].classes == tuple(sorted(folders))


def test_what_the_user_says_of_classes_holds(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("100APPLE", "101APPLE"))
    assert tables(root, classes=True)[0].classes == ("100APPLE", "101APPLE")
    root = lay_out(tmp_path / "e", *numbered("cat", "dog"))
    assert "label" not in tables(root, classes=False)[0].columns
    lay_out(root, "cover.png")
    with pytest.raises(UserError, match="data.classes=true, but cover.png isn't in a class's folder"):
        tables(root, classes=True)
    with pytest.raises(UserError, match="data.classes=true, but the images lie in one folder"):
        tables(lay_out(tmp_path / "f", *numbered("cat")), classes=True)


def test_folds_are_looked_through(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("fold0/a", "fold0/b", "fold1/a"))
    assert tables(root)[0].classes == ("a", "b")
    assert tables(root, classes=True)[0].classes == ("fold0", "fold1")


def test_shards_of_img2dataset_are_no_classes():
    shards = [f"0000{s}/0000{s}000{i}.jpg" for s in range(2) for i in range(3)]
    assert classes_of(shards, None, (), findings := Findings()) == [None] * 6 and "img2dataset" in findings.remarks[0]
    assert classes_of([path.replace("/0", "/1") for path in shards], None, (), Findings())[0] == "00000"


@pytest.mark.parametrize(
    ("path", "image"),
    [("1.png", "1"), ("jpg/a/1.jpeg", "a/1"), ("a/PNG/1.png", "a/1"), ("png/1.jpg", "png/1"), ("cat.v1.png", "cat.v1"),
     ("images_tiff/b.tif", "b")],
)  # fmt: skip
def test_what_names_an_image_whatever_its_format(path, image):
    assert image_of(path) == image


def test_the_random_split_leaves_training_an_image_of_each_class(tmp_path):
    several = numbered("a", "b")
    root = lay_out(tmp_path / "d", *several, *[f"{name}/0.png" for name in "cdefghijkl"])
    train, val = tables(root, val_share=0.5)
    assert train.classes == tuple("abcdefghijkl") and len(val) == 4 and {*val.names} < {*several}


def test_classes_of_one_image_each_are_refused_with_the_way(tmp_path):
    root = lay_out(tmp_path / "d", "a/0.png", "b/0.png", "c/0.png")
    with pytest.raises(UserError, match="the only image of its class.*data.classes=false"):
        tables(root)
    assert len(tables(root, classes=False)[0]) == 2


def test_copies_of_one_image_are_no_class_to_hold_out_from(tmp_path):
    root = lay_out(tmp_path / "d", "a/0.png", "b/0.png")
    for i in range(1, 4):
        (root / "a" / f"{i}.png").write_bytes((root / "a/0.png").read_bytes())
    with pytest.raises(UserError, match="an image and its copies count as one"):
        tables(root)


def test_numbered_folders_of_images_are_no_classes(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("images_001/images", "images_002/images"))
    assert "label" not in tables(root)[0].columns
    assert "parts of one set aren't classes: images_001, images_002" in facts(root).asides[0]


def test_a_split_with_every_class_in_training_stays(tmp_path):
    samples = [Sample(f"{i}.png", label=i % 2) for i in range(20)]
    plain = [Sample(f"{i}.png") for i in range(20)]
    (_, train), _ = split_off(Store(), samples, 0.5, Findings())
    assert [s.image for s in train] == [s.image for s in split_off(Store(), plain, 0.5, Findings())[0][1]]


def test_folders_named_as_sizes_are_classes_with_a_note():
    findings = Findings()
    assert classes_of(["256/0.png", "512/0.png"], None, (), findings) == ["256", "512"]
    assert "named by sizes are read as classes: 256, 512 (data.classes=false" in findings.warnings[0]
    classes_of(["12/0.png", "256/0.png"], None, (), other := Findings())
    assert not other.warnings


def test_a_number_and_a_name_around_classes_is_no_repeat(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("101_ObjectCategories/ant", "101_ObjectCategories/bee"))
    assert tables(root)[0].classes == ("ant", "bee")
    assert "101_ObjectCategories: not read as repeats" in " ".join(facts(root).asides)


NESTED = numbered("animals/cat", "animals/dog", "plants/oak")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("first", ["animals", "plants"]),
        (True, ["animals", "plants"]),
        ("last", ["cat", "dog", "oak"]),
        ("path", ["animals/cat", "animals/dog", "plants/oak"]),
        ("none", []),
    ],
)
def test_which_folder_is_the_class(tmp_path, classes, expected):
    root = lay_out(tmp_path / "d", *NESTED)
    assert list(tables(root, classes=classes)[0].classes) == expected
    assert not facts(root).notes


@pytest.mark.parametrize("layout", ["{split}/{top}/{name}", "{top}/{split}/{name}"])
@pytest.mark.parametrize(
    ("classes", "expected"), [("last", ["big", "small"]), ("path", ["cats/big", "cats/small", "dogs/big"])]
)
def test_nested_classes_of_both_splits(tmp_path, layout, classes, expected):
    places = [("train", "cats", "big"), ("train", "cats", "small"), ("train", "dogs", "big"), ("val", "dogs", "big")]
    paths = [layout.format(split=split, top=top, name=name) for split, top, name in places]
    train, val = tables(lay_out(tmp_path / "d", *numbered(*paths)), classes=classes)
    assert list(train.classes) == list(val.classes) == expected
    assert {expected[i] for i in val.columns["label"]} == {expected[0 if classes == "last" else 2]}
    merged = "cats/big, dogs/big" in " ".join(facts(tmp_path / "d").asides)
    assert merged == (classes == "last")


def test_nested_classes_that_are_none(tmp_path):
    root = lay_out(tmp_path / "d", *NESTED, "animals/9.png", "0.png")
    with pytest.raises(UserError, match="but 0.png isn't in a class's folder"):
        tables(root, classes="last")
    with pytest.raises(UserError, match="data.classes=lats is unknown. Did you mean 'last'"):
        tables(root, classes="lats")
    with pytest.raises(UserError, match="data.classes=3 is unknown"):
        tables(root, classes=3)
    with pytest.raises(UserError, match="data.classes=path and data.repeats=true"):
        tables(root, classes="path", repeats=True)


def test_folders_of_programs_are_no_classes_even_if_folders_are(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("cat", "dog"), "cat/@eaDir/0.png/THUMB.jpg", "thumbs/1.png")
    train, _ = tables(root, classes=True)
    assert list(train.classes) == ["cat", "dog", "thumbs"]
    assert list(facts(root).left_out) == ["cat/@eaDir/0.png/THUMB.jpg"]


def test_classes_within_folders_of_dates_are_named(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("2023-05-12/cat", "2023-05-12/dog", "2023-06-12/cat"))
    assert not tables(root)[0].classes
    assert "data.classes=last those inside, cat, dog)" in facts(root).asides[0]
    assert tables(root, classes="last")[0].classes == ("cat", "dog")
