"""Variants of training images: flips, crops, and augmentation with labels; maps, masks and control images move too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.data.augmenting.options import Variants
from ldm.data.augmenting.tables import with_variants
from ldm.data.augmenting.transforms import LABELS, SHIFT, parameters, settled, transform
from ldm.data.sources.digits import Digits
from ldm.data.sources.folder import Folder
from ldm.data.storage.table import Table
from ldm.images import Preprocess

N = 5


def image_of(height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def label_of(**values: float) -> torch.Tensor:
    names = ["flip", "upside_down", "right", "down", "scale", "cos", "sin", "along", "across", "dx", "dy"]
    label = torch.zeros(LABELS)
    for name, value in values.items():
        label[names.index(name)] = value
    return label


def folder(root: Path, n: int = N, size: tuple[int, int] = (8, 8)) -> Path:
    """Images with captions, maps, masks and control images; the map holds the image's first channel."""
    rows = []
    for i in range(n):
        pixels = image_of(*size, seed=i).permute(1, 2, 0).numpy()
        ids, edge = pixels[..., 0] % 7, np.where(pixels[..., 1] > 127, 255, 0).astype(np.uint8)
        for name, array in {"a": pixels, "map": ids, "mask": edge, "control": pixels[..., 2]}.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name / f"{i}.png")
        about = {key: f"{key}/{i}.png" for key in ("map", "mask", "control")}
        rows.append({"file_name": f"a/{i}.png", "text": f"no. {i}, seen from the left", **about})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def tables(root: Path, **options) -> tuple[Table, Table]:
    return Folder(str(root), val_share=0.2, **options).tables(root.parent / "cache")


def test_a_label_of_zeros_changes_nothing_and_a_flip_says_flip():
    x = image_of()
    assert torch.equal(transform(x, label_of()), x)
    assert torch.equal(transform(x, label_of(flip=1)), x.flip(2))
    assert torch.equal(transform(x, label_of(upside_down=1)), x.flip(1))
    labels = parameters(torch.arange(4000), 0.0)
    assert set(labels[:, 0].tolist()) == {0.0, 1.0} and labels[:, 1:].abs().max() == 0
    assert abs(float(labels[:, 0].mean()) - 0.5) < 0.03


def test_whole_translations_move_pixels_and_reflect_at_the_edge():
    x = image_of(8, 16)
    moved = transform(x, label_of(right=1))  # an eighth of 16 is 2
    assert torch.equal(moved[:, :, 2:], x[:, :, :-2]) and torch.equal(moved[:, :, :2], x[:, :, :2].flip(2))
    down = transform(x, label_of(down=-1))
    assert torch.equal(down[:, :-1], x[:, 1:]) and torch.equal(down[:, -1], x[:, -1])
    label = settled(label_of(right=0.4, down=0.4)[None], 8, 16)[0]
    assert label[2:4].tolist() == [0.5, 0.0]  # 0.8 pixels are 1, 0.4 are none


def test_scaling_rotation_and_shift_follow_their_labels():
    x = image_of(16, 16)
    half_turn = transform(x, label_of(cos=-2))  # cos r - 1 of half a turn
    torch.testing.assert_close(half_turn, x.flip(1, 2).float(), atol=1e-2, rtol=0)
    quarter = transform(x, label_of(cos=-1, sin=1))
    assert any(torch.allclose(quarter, x.rot90(k, (1, 2)).float(), atol=1e-2) for k in (1, 3))
    shifted = transform(x, label_of(dx=1))  # one eighth of 16 to the right
    torch.testing.assert_close(shifted[:, :, 2:], x[:, :, :-2].float(), atol=1e-2, rtol=0)
    # bicubic interpolation as torch has it is off by some hundredths on a ramp
    ramp = torch.arange(-7.5, 8).expand(1, 16, 16)
    twice = transform(ramp, label_of(scale=5))  # 0.2 * 5 octaves: twice as large
    torch.testing.assert_close(twice[0, :, 4:12], ramp[0, :, 4:12] / 2, atol=0.1, rtol=0)
    wider = transform(ramp, label_of(along=5))
    torch.testing.assert_close(wider[0, :, 4:12], ramp[0, :, 4:12] / 2, atol=0.1, rtol=0)
    higher = transform(ramp, label_of(across=5))  # along the other axis: columns come closer
    torch.testing.assert_close(higher[0, :, 6:10], ramp[0, :, 6:10] * 2, atol=0.1, rtol=0)


def test_each_transform_is_there_with_its_probability():
    labels = parameters(torch.arange(20_000), 0.12)
    shares = (labels != 0).float().mean(0)
    for column in (2, 4, 6, 7, 9):
        assert abs(float(shares[column]) - 0.12) < 0.01
    assert abs(float(shares[1]) - 0.06) < 0.01
    assert torch.equal(parameters(torch.tensor([17]), 0.12)[0], labels[17])  # whatever the batch
    unchanged = (labels == 0).all(1).float().mean()
    assert float(unchanged) == pytest.approx(0.5 * 0.94 * 0.88**5, abs=0.01)


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", [(), (-1,)]), ("both", [(), (-1,), (-2,), (-2, -1)])])
def test_flips_turn_map_mask_and_control_with_the_image(tmp_path, flip, axes, caplog):
    root = folder(tmp_path / "d")
    (plain, plain_val), (train, val) = tables(root), tables(root, flip=flip)
    n = len(plain)
    assert train.variants == len(axes) and len(train) == n * len(axes) and train.originals == n
    assert val.key == plain_val.key and len(val) == len(plain_val) and "augment" not in train.columns
    for k, flipped in enumerate(axes):
        rows = slice(k * n, (k + 1) * n)
        np.testing.assert_array_equal(train.images[rows], np.flip(plain.images, flipped))
        for key in ("map", "mask", "control"):
            np.testing.assert_array_equal(train.columns[key][rows], np.flip(plain.columns[key], flipped))
        assert list(train.columns["text"])[rows] == list(plain.columns["text"]) and train.names[k * n] == plain.names[0]
    np.testing.assert_array_equal(train.images[:, 0] % 7, train.columns["map"])
    assert "4 of 4 captions say left or right" in caplog.text
    again = tables(root, flip=flip)[0]
    assert again.key == train.key != plain.key and isinstance(again.images, np.memmap)


def test_augmented_maps_move_with_the_image_and_validation_is_unchanged(tmp_path):
    root = folder(tmp_path / "d", n=12, size=(16, 16))
    train, val = tables(root, variants=6, augment=0.4)
    n, labels = train.originals, np.asarray(train.columns["augment"])
    assert train.variants == 6 and labels.shape == (6 * n, LABELS) and not labels[:n].any() and labels[n:].any()
    assert not val.columns["augment"].any()
    whole = ~labels[:, 4:].any(1)  # flips and whole translations: pixels as they are
    assert whole[n:].any() and not whole.all()
    np.testing.assert_array_equal(train.images[whole][:, 0] % 7, train.columns["map"][whole])
    assert set(np.unique(train.columns["mask"]).tolist()) == {0, 255}  # nothing in between
    row = int(np.flatnonzero(labels[:, 0] == 1)[0])
    assert train.batch(np.array([row]), ["augment"])["augment"][0, 0] == 1


def test_a_flipped_image_is_augmented_by_labels_of_its_own(tmp_path):
    root = folder(tmp_path / "d", n=12, size=(16, 16))
    train, _ = tables(root, variants=4, augment=0.3, flip="horizontal")
    n, labels = train.originals, np.asarray(train.columns["augment"])
    np.testing.assert_array_equal(train.images[4 * n : 5 * n], np.flip(train.images[:n], -1))
    assert not labels[4 * n : 5 * n].any() and (labels[5 * n : 6 * n] != labels[n : 2 * n]).any()
    row = 5 * n + int(np.flatnonzero(labels[5 * n : 6 * n].any(1) & ~labels[5 * n : 6 * n, 4:].any(1))[0])
    mirrored = torch.from_numpy(np.flip(train.images[row % n], -1).copy())
    np.testing.assert_array_equal(train.images[row], transform(mirrored, torch.from_numpy(labels[row].copy())).numpy())


def test_crops_are_parts_of_the_file_and_maps_go_with_them(tmp_path):
    root = folder(tmp_path / "d", n=6, size=(32, 32))
    train, _ = tables(root, variants=3, zoom=2, size=8, columns=["map"])
    plain, _ = tables(root, size=8, columns=["map"])
    n = train.originals
    np.testing.assert_array_equal(train.images[:n], plain.images)
    assert (
        not (train.images[n : 2 * n] == plain.images).all()
        and not (train.images[n : 2 * n] == train.images[2 * n :]).all()
    )
    frames = train.each_frame
    assert (frames[:, :2] == 32).all() and (frames[:n, 2:4] == 0).all() and frames[n:, 2:4].any()
    assert not list((tmp_path / "cache").glob("*/crops"))


def test_a_crop_of_an_image_is_the_part_it_says():
    x = image_of(16, 16).permute(1, 2, 0).numpy()
    corner = Preprocess(3, 8, 8).cropped(2, 1.0, 0.0)
    np.testing.assert_array_equal(corner.array(x), x[:8, 8:].transpose(2, 0, 1))
    np.testing.assert_array_equal(corner.resize_map(x[..., 0]), x[:8, 8:, 0])
    assert corner.frame(16, 16) == (16, 16, 0, 8, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": "left"}, "data.flip=left is unknown"),
        ({"variants": 0}, "data.variants=0"),
        ({"variants": 3}, "say how they differ"),
        ({"augment": 0.1}, "say how many with data.variants=8"),
        ({"augment": 1.5, "variants": 2}, "probability"),
        ({"zoom": 0.5, "variants": 2}, "data.zoom=0.5"),
    ],
)
def test_wrong_options_are_refused_before_any_file_is_read(options, words):
    with pytest.raises(UserError, match=words):
        Folder("nowhere", **options)


def test_buckets_have_variants_each(tmp_path):
    for i in range(8):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.fromarray(image_of(8, 8 if i % 2 else 16, seed=i).permute(1, 2, 0).numpy()).save(
            tmp_path / "d" / f"{i}.png"
        )
    options = {"size": 8, "buckets": True, "bucket_step": 4, "bucket_least": 1}
    plain, train = (tables(tmp_path / "d", **options, flip=flip)[0] for flip in ("none", "horizontal"))
    assert [len(part) for part in train.buckets] == [2 * len(part) for part in plain.buckets]
    assert [part.variants for part in train.buckets] == [2] * len(train.buckets)


def test_no_options_change_nothing(tmp_path):
    pair = Digits().tables(tmp_path)
    assert with_variants(pair, Variants(), tmp_path) is pair and SHIFT == 1 / 8
    train, _ = Digits(flip="horizontal", val_share=0.9).tables(tmp_path)
    n = train.originals
    np.testing.assert_array_equal(train.columns["label"][:n], train.columns["label"][n:])
