"""What is a mask or control image of another image, and what is a class beside it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import facts, lay_out, names, numbered, tables


def fill(folder: Path, kind: str, n: int = 3, size: tuple[int, int] = (16, 16), mark: str = "") -> None:
    """Images 0, 1, ...: `photo` of random colours, `scan` of random greys, `mask` black and white, `map` of a palette,
    `depth` a grey ramp."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        ramp = np.linspace(i, 200 + i, height * width, dtype=np.uint8).reshape(size)
        shown_image = {
            "photo": lambda noise=noise: Image.fromarray(noise),
            "scan": lambda noise=noise: Image.fromarray(noise[..., 0]),
            "mask": lambda ramp=ramp: Image.fromarray((ramp > 100) * np.uint8(255)),
            "map": lambda ramp=ramp: Image.fromarray(ramp // 100).convert("P"),
            "depth": lambda ramp=ramp: Image.fromarray(ramp),
        }[kind]()
        shown_image.save(folder / f"{i}{mark}.png")


@pytest.mark.parametrize(
    "others",
    [
        numbered("masks"),
        ["images/0-masklabel.png", "images/1_mask.png", "images/2.openpose.png"],
        numbered("__MACOSX", "@eaDir/images", "images/thumbnails"),
        numbered("#recycle/images", "@Recycle", "$RECYCLE.BIN", "#snapshot", "My Previews.lrdata/a"),
        numbered("images/thumb", "thumbnails128x128"),
        ["images/.ipynb_checkpoints/0-checkpoint.png"],
    ],
)
def test_masks_and_leavings_are_no_images(tmp_path, others):
    root = lay_out(tmp_path / "d", *numbered("images"), *others)
    found = tables(root)
    assert names(found) == numbered("images") and "label" not in found[0].columns
    assert set(facts(root).left_out) == {path for path in others if "/." not in path}


def test_classes_that_are_called_masks_are_classes(tmp_path):
    root = lay_out(tmp_path / "d", "mask/a.png", "mask/b.png", "no mask/c.png", "no mask/d.png")
    assert tables(root)[0].classes == ("mask", "no mask")


@pytest.mark.parametrize(
    "classes",
    [
        ("NORMAL", "PNEUMONIA"),
        ("control", "treated"),
        ("controls", "patients"),
        ("mask", "nothing"),
        ("mask_weared_incorrect", "with_mask", "without_mask"),
    ],
)
def test_classes_numbered_alike_are_classes(tmp_path, classes):
    root = tmp_path / "d"
    for name in classes:
        fill(root / name, "scan")
    found = tables(root)
    assert found[0].classes == classes and names(found) == numbered(*classes)
    assert "is read as a class" in facts(root).asides[0] and "data.without='[" in facts(root).asides[0]
    assert not set(names(tables(root, without=[classes[0]]))) & set(numbered(classes[0]))


def test_classes_numbered_alike_within_splits(tmp_path):
    folders = [f"{split}/{name}" for split in ("train", "test") for name in ("NORMAL", "PNEUMONIA")]
    train, val = tables(lay_out(tmp_path / "d", *numbered(*folders)))
    assert train.classes == val.classes == ("NORMAL", "PNEUMONIA") and (len(train), len(val)) == (6, 6)


@pytest.mark.parametrize(
    ("image", "about", "name", "evidence"),
    [
        ("photo", "mask", "mask", "with few values, like masks"),
        ("scan", "mask", "mask", "with few values, like masks"),
        ("photo", "map", "label", "with few values, like masks"),
        ("photo", "depth", "control", "grey where the images are in colour"),
        ("photo", "photo", "masks", "whose files have the names of the images beside it"),
    ],
)
def test_the_pixels_say_what_is_about_the_images(tmp_path, image, about, name, evidence):
    root = tmp_path / "d"
    fill(root / "faces", image)
    fill(root / name, about)
    found = tables(root)
    assert names(found) == numbered("faces") and not found[0].columns
    (reason,) = {*facts(root).left_out.values()}
    assert evidence in reason and f"data.classes=true reads {name}/ as a class" in reason
    assert tables(root, classes=True)[0].classes == tuple(sorted(("faces", name)))


def test_images_of_another_aspect_are_no_masks(tmp_path):
    fill(tmp_path / "d/faces", "photo")
    fill(tmp_path / "d/mask", "mask", size=(16, 24))
    assert tables(tmp_path / "d", size=8)[0].classes == ("faces", "mask")


def test_masks_among_classes(tmp_path):
    for name in ("cats", "dogs"):
        fill(tmp_path / "d" / name, "photo")
        fill(tmp_path / "d/mask" / name, "photo")
        fill(tmp_path / "e" / name, "photo")
        fill(tmp_path / "e" / name / "mask", "photo")
        fill(tmp_path / "f" / name, "photo")
    fill(tmp_path / "f/mask", "photo", mark="_mask")
    for root in ("d", "e", "f"):
        found = tables(tmp_path / root)
        assert found[0].classes == ("cats", "dogs") and names(found) == numbered("cats", "dogs"), root
    fill(tmp_path / "g/cats", "photo"), fill(tmp_path / "g/dogs", "photo"), fill(tmp_path / "g/masks", "photo")
    assert tables(tmp_path / "g")[0].classes == ("cats", "dogs", "masks")


def test_voc(tmp_path):
    images, about = numbered("JPEGImages", n=6), numbered("SegmentationClass", "SegmentationObject", n=4)
    root = lay_out(tmp_path / "d", *images, *about, "Annotations/0.xml", "ImageSets/Main/train.txt")
    found = tables(root)
    assert names(found) == images and not found[0].columns and set(facts(root).left_out) == set(about)


def test_cityscapes(tmp_path):
    places = [f"{split}/{city}/{city}_{i}" for split in ("train", "val") for city in ("a", "b") for i in range(2)]
    about = [f"gtFine/{place}_gtFine_{kind}.png" for place in places for kind in ("color", "labelIds", "instanceIds")]
    images = [f"leftImg8bit/{place}_leftImg8bit.png" for place in places]
    root = lay_out(tmp_path / "d", *images, *about)
    train, val = tables(root)
    assert (list(train.names), list(val.names)) == (images[:4], images[4:]) and train.classes == ("a", "b")
    assert set(facts(root).left_out) == set(about)


@pytest.mark.parametrize("parts", [("training", "validation"), ("train", "val")])
def test_ade20k(tmp_path, parts):
    images, about = ([f"{kind}/{part}" for part in parts] for kind in ("images", "annotations"))
    root = lay_out(tmp_path / "d", *numbered(*images, *about))
    found = tables(root)
    assert [list(table.names) for table in found] == [numbered(images[0]), numbered(images[1])]
    assert not found[0].columns and set(facts(root).left_out) == set(numbered(*about))


@pytest.mark.parametrize(
    ("images", "about"),
    [
        ("train/data", "train/labels/masks"),  # Open Images
        ("CelebA-HQ-img", "CelebAMask-HQ-mask-anno/0"),
        ("image_2", "instance"),  # KITTI
        ("images", "conditioning_images"),  # diffusers
    ],
)
def test_masks_with_names_of_their_own(tmp_path, images, about):
    root = tmp_path / "d"
    fill(root / images, "photo")
    fill(root / about, "mask", mark="_m01_9")
    assert names(tables(root)) == numbered(images)
    assert "with few values, like masks (" in {*facts(root).left_out.values()}.pop()
    fill(root / about, "photo", mark="_m01_9")
    assert len(names(tables(root))) == 6, "by their names alone they are no masks"


def test_label_studios_masks(tmp_path):
    root = lay_out(
        tmp_path / "d", *numbered("images"), *(f"task-{i}-annotation-1-by-1-tag-cat-0.png" for i in range(3))
    )
    assert names(tables(root)) == numbered("images") and len(facts(root).left_out) == 3


def test_masks_that_metadata_name_are_not_left_out(tmp_path):
    root = lay_out(tmp_path / "d", *numbered("train", "val", n=2))
    fill(root / "masks", "mask", n=2, size=(4, 4))
    for split in ("train", "val"):
        rows = (f'{{"file_name": "{i}.png", "mask": "masks/{i}.png"}}' for i in range(2))
        (root / split / "metadata.jsonl").write_text("\n".join(rows))
    assert set(tables(root)[0].columns) == {"mask"} and not facts(root).left_out
