"""Folders as kohya's tools name them."""

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data.datamodule import TrainBatches
from tests.data.folders import describe, facts, lay_out, names, numbered, tables


def test_kohyas_folders_are_repeats(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("img/10_sks dog", n=4), *numbered("img/2_cat", "reg/1_dog", n=2))
    (root / "img/10_sks dog/1.txt").write_text("a caption of its own")
    train, val = tables(root)
    assert "label" not in train.columns and len(train) == 5 and len(val) == 1
    wanted = {"img/10_sks dog/1.png": "a caption of its own"}
    assert train.columns["text"] == [wanted.get(name, "cat" if "cat" in name else "sks dog") for name in train.names]
    repeats = np.array([2 if "cat" in name else 10 for name in train.names])
    np.testing.assert_array_equal(train.columns["repeats"], repeats)
    assert set(facts(root).left_out) == {"reg/1_dog/0.png", "reg/1_dog/1.png"}
    visits, epochs = TrainBatches(train, ("image", "text"), seed=3), 3
    batch = visits[np.arange(epochs * repeats.sum())]
    assert np.bincount(batch["index"].numpy()).tolist() == (epochs * repeats).tolist()


def test_numbered_classes_are_no_repeats(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("1_dogs", "2_cats"))
    assert tables(root)[0].classes == ("1_dogs", "2_cats")
    assert set(tables(root, repeats=True)[0].columns) == {"text", "repeats"}
    assert tables(lay_out(tmp_path / "k", *numbered("5_a", "9_b")), repeats=False)[0].classes == ("5_a", "9_b")


@pytest.mark.parametrize(
    "others", [numbered("model/sample"), numbered("sample", "log"), numbered("reg"), numbered("regularization_images")]
)
def test_what_lies_beside_kohyas_folders_is_no_class(tmp_path, others):
    root = lay_out(tmp_path / "d", *numbered("img/10_sks dog"), *others)
    found = tables(root)
    assert names(found) == numbered("img/10_sks dog") and set(found[0].columns) == {"text", "repeats"}
    assert set(facts(root).left_out) == set(others)


def test_a_stray_image_beside_repeats(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("10_sks"), "cover.png")
    assert set(tables(root)[0].columns) == set()
    assert "10_sks: not read as repeats, since 1 image, such as cover.png, lies elsewhere" in caplog.text
    assert "data.repeats=true reads them as repeats, without the others" in caplog.text
    found = tables(root, repeats=True)
    assert names(found) == numbered("10_sks") and set(found[0].columns["repeats"]) == {10}
    assert "outside of folders named NUMBER_name, which data.repeats=true reads (1 file: cover.png)" in caplog.text


def test_a_folder_of_no_repeats(tmp_path, caplog):
    root = lay_out(tmp_path / "d", *numbered("0_old", "10_sks"))
    assert tables(root)[0].classes == ("0_old", "10_sks")
    assert any(
        "read as numbered classes; data.repeats=true reads them as repeats" in aside for aside in facts(root).asides
    )
    assert names(tables(root, repeats=True)) == numbered("10_sks")
    assert "in a folder of 0 repeats (3 files" in caplog.text


def test_repeats_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of images is named NUMBER_name, such as 10_dog"):
        tables(lay_out(tmp_path / "d", *numbered("dog", "cat")), repeats=True)
    with pytest.raises(UserError, match="data.classes=true and data.repeats=true"):
        tables(tmp_path / "d", repeats=True, classes=True)


def test_repeats_beside_metadata(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("10_sks"), *numbered("0_old", "other", n=1))
    describe(root, *({"file_name": f"10_sks/{i}.png", "text": "x"} for i in range(3)))
    assert set(tables(root)[0].columns) == {"text"}
    assert any("10_sks: not read as repeats, since there are metadata" in aside for aside in facts(root).asides)
    described = [*numbered("10_sks"), "0_old/0.png", "other/0.png"]
    describe(root, *({"file_name": path, "text": path} for path in described))
    found = tables(root, repeats=True)
    repeats = {n: int(r) for t in found for n, r in zip(t.names, t.columns.get("repeats", [1]), strict=True)}
    assert repeats["10_sks/2.png"] == 10 and repeats["other/0.png"] == 1 and "0_old/0.png" not in repeats


def test_validation_is_not_held_to_repeats(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("train/10_sks", "val"))
    train, val = tables(root, repeats=True)
    assert set(train.columns["repeats"]) == {10} and val.names == numbered("val")
    root = lay_out(tmp_path / "c", *numbered("train/1_dogs", "train/2_cats", "val/2_cats"))
    train, val = tables(root)
    assert train.classes == ("1_dogs", "2_cats") and val.columns["label"].tolist() == [1, 1, 1]


def test_numbers_of_folders_are_given_by_name_or_path(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("dog/a", "dog/b", "cat", n=4))
    numbers = {"dog": 3, "dog/b": 5, "cat": 2}
    train = tables(root, repeats=numbers)[0]
    wanted = {"dog/a": 3, "dog/b": 5, "cat": 2}
    assert train.columns["repeats"].tolist() == [wanted[name.rpartition("/")[0]] for name in train.names]
    assert train.classes == ("cat", "dog")  # folders may be both
    plain = tables(root)[0]
    assert plain.key != train.key and "repeats" not in plain.columns
    only = tables(root, repeats={"b": 2})[0]
    assert [2 if "/b/" in name else 1 for name in only.names] == only.columns["repeats"].tolist()
    for wrong, message in [({"dogs": 2}, "Did you mean 'dog'"), ({"dog": 0}, "at least 1")]:
        with pytest.raises(UserError, match=message):
            tables(root, repeats=wrong)
