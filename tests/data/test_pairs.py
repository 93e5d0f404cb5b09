"""data.pairs: captions, masks and control images by a folder or a pattern of names."""

import zipfile

import pytest

from ldm.common.errors import UserError
from ldm.data.sources.folder import Folder
from tests.data.folders import describe, facts, lay_out, names, numbered, tables


def columns(found) -> dict[str, tuple]:
    """By image: its caption, and what its control image and mask hold."""
    kinds = ("text", "control", "mask")
    return {
        name: tuple(table.columns[kind][i].max() if kind != "text" else table.columns[kind][i] for kind in kinds
                    if kind in table.columns)
        for table in found for i, name in enumerate(table.names)
    }  # fmt: skip


def test_a_folder_of_control_images(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("source", "target"), "source/9.png")
    found = tables(root, pairs={"control": "source"})
    assert names(found) == numbered("target") and not found[0].classes
    assert columns(found) == {f"target/{i}.png": (i,) for i in range(3)}
    about = facts(root)
    assert "3 control images from source, as data.pairs says" in about.asides
    assert ("without an image of the same name") in about.left_out[
        "source/9.png"
    ] and "source/0.png" not in about.left_out


@pytest.mark.parametrize(
    ("control", "place"),
    [
        ("cond/train/a/{}.png", "cond"), ("cond/a/{}.png", "cond"), ("train/a/cond/{}.png", "cond"),
        ("all/cond/train/a/{}.png", "all/cond"), ("train/a/{}_c.jpg", "*_c.jpg"), ("train/a/{}-c.jpg", "*-c.*"),
        ("x/{}-c.png", "x/*-c.*"), ("cond/{}_mask.png", "cond"), ("Cond/train/A/{}.PNG", "cond"),
    ],
)  # fmt: skip
def test_where_files_may_lie(tmp_path, control, place):
    images = [f"train/a/{i}.jpg" for i in range(2)]
    root = lay_out(tmp_path / "d", *images, *[control.format(i) for i in range(2)])
    for path in list(root.rglob("*.PNG")):
        path.write_bytes(b"P6\n4 4\n255\n" + bytes([2 + int(path.stem)] * 48))
    assert columns(tables(root, pairs={"control": place})) == {f"train/a/{i}.jpg": (2 + i,) for i in range(2)}


def test_captions_in_a_folder_and_by_a_pattern_also_in_a_zip(tmp_path):
    root = lay_out(tmp_path / "d", "images/0.png", "images/1.png", "text/0.txt", "text/1.txt")
    lay_out(root, "images/0.tags", "images/1.tags")
    assert columns(tables(root, pairs={"text": "text"})) == {f"images/{i}.png": (f"text/{i}.txt",) for i in range(2)}
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(root))
    found = Folder(str(tmp_path / "d.zip"), pairs={"text": "*.tags"}).tables(tmp_path / "cache")
    assert columns(found) == {f"images/{i}.png": (f"images/{i}.tags",) for i in range(2)}


def test_metadata_come_first(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("i", "m", n=2), "own.png")
    describe(root, {"file_name": "i/0.png", "control": "own.png"}, {"file_name": "i/1.png"})
    assert columns(tables(root, pairs={"control": "m"})) == {"i/0.png": (4,), "i/1.png": (3,)}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"contrl": "m"}, "'contrl' can't be paired. Did you mean 'control'"),
        ({"control": ["m"]}, r"control is \['m'\]; give a folder's name"),
        ({"mask": ""}, "mask is ''; give a folder's name"),
        (["control"], "isn't a mapping: write data.pairs='{control: FOLDER}'"),
        ({"control": "n"}, "there is no folder with such files named 'n'"),
        ({"mask": "*_m.png"}, "there is no file like"),
        ({"control": "other"}, "none of 4 images .* has its control image in other"),
        ({"control": "m"}, "m/0.png would be the control image of both a/0.png and b/0.png"),
    ],
)
def test_pairs_that_can_not_be(tmp_path, pairs, message):
    root = lay_out(tmp_path / "d", *numbered("a", "b", n=2), "m/0.png", "other/8.png")
    without = [name for name in ("m", "other") if name not in (pairs.values() if isinstance(pairs, dict) else pairs)]
    with pytest.raises(UserError, match=message):
        tables(root, pairs=pairs, without=without)
