"""Byte-equal copies of one image are on one side of the split."""

import zipfile

import pytest

from ldm.data.preparing import duplicates
from tests.data.folders import facts, lay_out, names, tables

COPIES = ("1.jpg", "1 (1).jpg", "other/1.jpg")


def fill(root, n=6):
    lay_out(root, *(f"{i}.png" for i in range(n)))
    for path in COPIES:
        lay_out(root, path)
        (root / path).write_bytes(b"P6\n4 4\n255\n" + bytes([200] * 48))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_copies_stay_on_one_side(tmp_path, packed, capsys):
    root = fill(tmp_path / "d")
    if packed:
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as file:
            for path in sorted(root.rglob("*.*")):
                file.write(path, path.relative_to(root).as_posix())
        root = tmp_path / "d.zip"
    for share in (0.2, 0.4, 0.6):
        train, val = tables(root, val_share=share, classes=False)
        assert {*COPIES} <= {*train.names} or {*COPIES} <= {*val.names}
    assert "2 images copied byte for byte (1.jpg of 1 (1).jpg)" in capsys.readouterr().out


def test_copies_in_several_classes_are_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "a/1.png", "a/2.png", "b/3.png", "b/4.png")
    (root / "b/4.png").write_bytes((root / "a/1.png").read_bytes())
    tables(root)
    assert "1 image with byte-for-byte copies in several classes (a/1.png and b/4.png)" in caplog.text


def test_all_alike_are_split_as_ever(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "1.png", "2.png", "3.png")
    for path in root.iterdir():
        path.write_bytes(b"P6\n4 4\n255\n" + bytes(48))
    train, val = tables(root)
    assert (len(train), len(val)) == (2, 1)
    assert "all 3 images are the same, byte for byte" in caplog.text


def test_copies_in_training_and_validation_are_reported(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "train/1.png", "train/2.png", "val/3.png", "val/4.png")
    (root / "val/4.png").write_bytes((root / "train/1.png").read_bytes())
    tables(root)
    assert "1 validation image is a copy of training images, byte for byte (val/4.png)" in caplog.text


def test_too_many_of_one_size_are_not_read(tmp_path, monkeypatch):
    root = fill(tmp_path / "d")
    monkeypatch.setattr(duplicates, "MOST", 3)
    assert len(names(tables(root, classes=False))) == 9
    assert any("copies of images aren't looked for, since 9 images" in aside for aside in facts(root).asides)
