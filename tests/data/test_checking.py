"""What a check counts: copies, crops, captions, classes and ids of maps."""

import numpy as np
import pytest

from ldm.data.checking.collection import Collection
from ldm.data.checking.copies import find_copies, near_pairs
from ldm.data.checking.crops import Sizes
from ldm.data.checking.ids import class_counts, map_ids
from ldm.data.checking.pixels import measure
from ldm.data.checking.texts import texts_of
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.table import Table
from ldm.images import Preprocess


def table(images: np.ndarray, key: str = "train", **columns) -> Table:
    _, channels, height, width = images.shape
    names = [f"{key}-{i}" for i in range(len(images))]
    return Table(images, columns, Preprocess(channels, height, width), key, names)


def coarse(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 3, 16, 16) of random blocks of 4 x 4 pixels, from 30 to 220."""
    blocks = np.random.default_rng(seed).integers(30, 221, (n, 3, 4, 4), dtype=np.uint8)
    return blocks.repeat(4, 2).repeat(4, 3)


def test_copies_are_found_exactly_nearly_and_across_the_split():
    images, val = coarse(300), coarse(20, seed=1)
    images[7] = images[3]
    images[9] = images[4] + 2  # a little brighter
    val[5] = images[8]
    val[5, 0, 0, 0] ^= 4  # one pixel
    collection = Collection(table(images), table(val, "val"))
    found = find_copies(measure(collection), collection.is_val)
    assert found.exact == [[3, 7]] and found.near == [[4, 9], [8, 305]] and found.mixed == [[8, 305]]
    assert collection.names(found.mixed[0]) == ["train-8", "val-5"] and found.surplus == 1


def test_a_thousand_images_of_one_hash_are_compared_with_their_neighbours_alone(monkeypatch):
    blocks = np.zeros((1000, 192), np.float32) + 10 * np.arange(1000, dtype=np.float32)[:, None] % 250
    pairs = near_pairs(np.zeros(1000, np.uint64), blocks)
    assert len(pairs) <= 24 * 12 * 1000 and (pairs[:, 0] < pairs[:, 1]).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_images_have_no_copies(n):
    assert len(near_pairs(np.arange(n, dtype=np.uint64) << np.uint64(40), np.zeros((n, 3), np.float32))) in (0, 1)


def test_uniform_and_blurred_images_are_found():
    images = coarse(12) // 2 + np.random.default_rng(2).integers(0, 60, (12, 3, 16, 16), dtype=np.uint8)
    images[2] = 77
    images[6] = np.linspace(0, 255, 16).astype(np.uint8)[None, :, None] // 4 * 4
    images[6] = np.linspace(0, 255, 4).astype(np.uint8).repeat(4)[None, :, None]  # constant within 4 x 4
    pixels = measure(Collection(table(images[:6]), table(images[6:], "val")))
    assert pixels.uniform().tolist() == [2] and pixels.blurred().tolist() == [6]
    assert pixels.detail[6] == pytest.approx(0, abs=1e-6) and pixels.ranges[2] == 0


def test_what_is_cropped_and_enlarged():
    frames = np.array([Preprocess(3, 32, 32).frame(h, w) for h, w in ((32, 96), (16, 16), (64, 64), (64, 48))])
    sizes = Sizes.of(frames, Preprocess(3, 32, 32))
    np.testing.assert_allclose(sizes.lost, [2 / 3, 0, 0, 1 / 4])
    np.testing.assert_allclose(sizes.scale, [1, 2, 0.5, 2 / 3])
    assert sizes.cropped().tolist() == [0] and sizes.enlarged().tolist() == [1]
    assert sizes.aspects() == {"about square": 2, "1:2 to 4:5": 1, "above 2:1": 1}
    whole = Sizes.of(frames, Preprocess(3, 32, 32, resize="contain"))
    np.testing.assert_allclose(whole.scale, [1 / 3, 2, 0.5, 0.5])
    assert not whole.lost.any()
    pulled = Sizes.of(frames, Preprocess(3, 32, 32, resize="stretch"))
    np.testing.assert_allclose(pulled.stretch, [3, 1, 1, 4 / 3])
    assert pulled.stretched().tolist() == [0, 3]


def test_captions_are_counted():
    found = texts_of(["a red fox", "", ["a blue fox", "the fox on the left"], "a red fox"])
    assert found.missing.tolist() == [1] and found.lengths.tolist() == [3, 3, 5, 3]
    assert found.shared == ["fox"] and found.repeated == 2 and found.sides == [2] and not found.tags
    assert texts_of(["one", "one"]).same == "one"
    tags = texts_of(["1girl, red hair, smile", "1girl, hat, smile", "cat, hat, grey"]).tags
    assert tags["1girl"] == 2 and tags["red hair"] == 1


def test_classes_and_ids_are_counted():
    counts = class_counts(np.array([0, 0, 2, 2]), np.array([False, True, False, False]), ("cat", "dog", "fox"))
    assert counts == {"cat": (1, 1), "dog": (0, 0), "fox": (2, 0)}
    maps = np.zeros((2, 16, 16), np.uint8)
    maps[1, :8] = 4
    found = map_ids([table(coarse(2), map=maps)])
    assert found.pixels == {0: 0.75, 4: 0.25} and found.images == {0: 2, 4: 1}
    assert found.gaps == [1, 2, 3] and not found.are_many


def test_buckets_count_as_one_collection():
    wide = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 32), dtype=np.uint8)
    train = Buckets.of([table(coarse(3)), table(wide, "wide")], "both")
    collection = Collection(train, table(coarse(1, seed=3), "val"))
    assert len(collection) == 6 and collection.is_val.tolist() == [False] * 5 + [True]
    assert collection.name(4) == "wide-1" and collection.image(4).shape == (3, 8, 32) and collection.name(5) == "val-0"
    assert len(measure(collection).hashes) == 6
