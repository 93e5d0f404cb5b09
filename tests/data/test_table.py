import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.data.storage.cached import cached
from ldm.data.storage.strings import Strings
from ldm.data.storage.table import Table, column_names, hash_of, new_array
from ldm.images import Preprocess


def table(n: int = 6, key: str = "k") -> Table:
    rng = np.random.default_rng(0)
    columns = {
        "label": np.arange(n),
        "text": [f"caption {i}" for i in range(n)],
        "map": rng.integers(0, 9, (n, 4, 5), dtype=np.uint8),
        "mask": rng.integers(0, 2, (n, 4, 5), dtype=np.uint8) * np.uint8(255),
        "control": rng.integers(0, 256, (n, 1, 4, 5), dtype=np.uint8),
        "weight": np.linspace(0, 1, n),
    }
    images = rng.integers(0, 65536, (n, 2, 4, 5), dtype=np.uint16)
    return Table(images, columns, Preprocess(2, 4, 5, bits=16), key, [f"{i}.npy" for i in range(n)], ("a", "b"))


def test_a_batch_has_the_schemas_values_and_types():
    data = table()
    index = np.array([4, 0, 4])
    batch = data.batch(index, ["image", "label", "text", "map", "mask", "control", "weight"])
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key != "text"} == {
        "image": (torch.float32, (3, 2, 4, 5)),
        "label": (torch.int64, (3,)),
        "map": (torch.int64, (3, 4, 5)),
        "mask": (torch.float32, (3, 1, 4, 5)),
        "control": (torch.float32, (3, 1, 4, 5)),
        "weight": (torch.float64, (3,)),
    }
    assert batch["text"] == ["caption 4", "caption 0", "caption 4"]
    assert batch["label"].tolist() == [4, 0, 4]
    np.testing.assert_allclose(batch["image"], data.images[index] / 32767.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch["map"], data.columns["map"][index])
    np.testing.assert_array_equal(batch["mask"][:, 0] * 255, data.columns["mask"][index])
    np.testing.assert_allclose(batch["control"], data.columns["control"][index] / 127.5 - 1, atol=1e-6)


def test_only_what_is_requested_is_made_and_what_is_missing_is_named():
    data = table()
    assert list(data.batch(np.array([1]), ["label"])) == ["label"]
    with pytest.raises(UserError, match="no 'depth'.*image, label"):
        data.batch(np.array([1]), ["depth"])
    assert column_names(data.columns) == ("image", "label", "text", "map", "mask", "control")


def test_alternative_captions_are_drawn():
    data = table(3)
    data.columns["text"] = [["a", "b"], "only", ["c", "d", "e"]]
    index = np.arange(3)
    assert data.batch(index, ["text"])["text"] == ["a", "only", "c"]
    assert data.batch(index, ["text"], draw=np.array([0.5, 0.99, 0.999]))["text"] == ["b", "only", "e"]


def test_a_saved_table_comes_back_memory_mapped(tmp_path):
    data = table()
    data.map_classes = ("ground", "tree")
    data.save(tmp_path / "t")
    again = Table.load(tmp_path / "t")
    assert isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(again.images, data.images)
    for name, column in data.columns.items():
        np.testing.assert_array_equal(again.columns[name], column)
    assert isinstance(again.columns["text"], Strings)
    assert (again.key, list(again.names), again.classes, again.map_classes) == (
        "k", list(data.names), ("a", "b"), ("ground", "tree"),
    )  # fmt: skip
    assert again.preprocess.shape == (2, 4, 5) and again.preprocess.bits == 16


def test_columns_must_fit_the_images():
    with pytest.raises(ValueError, match="'label' has 2"):
        Table(np.zeros((3, 1, 2, 2), np.uint8), {"label": np.zeros(2)}, Preprocess(1, 2, 2), "k")


def test_the_cache_makes_tables_once_and_keeps_arrays_made_in_place(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        images = new_array(folder / "train" / "images.npy", np.uint8, (5, 1, 2, 2))
        images[:] = 7
        train = Table(images[:3], {}, Preprocess(1, 2, 2), "t")  # two rows were left out
        return train, Table(np.zeros((1, 1, 2, 2), np.uint8), {}, Preprocess(1, 2, 2), "v")

    for _ in range(2):
        train, val = cached(tmp_path, "key", make)
        assert len(train) == 3 and (train.images == 7).all() and val.key == "v"
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_interrupted_cache_is_made_again(tmp_path):
    def fail(folder):
        table().save(folder / "train")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "key", fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "key" / "train").mkdir(parents=True)  # as a copy that was cut short leaves it
    train, _ = cached(tmp_path, "key", lambda folder: (table(), table(2)))
    assert len(train) == 6


def test_two_processes_may_make_the_same_cache(tmp_path):
    def make(folder):
        cached(tmp_path, "key", lambda other: (table(key="first"), table()))  # another one is faster
        return table(key="second"), table()

    train, _ = cached(tmp_path, "key", make)
    assert train.key == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_hashes_tell_data_apart():
    assert hash_of("a", [1, 2]) == hash_of("a", (1, 2))
    assert hash_of("a", 12) != hash_of("a", 1, 2) != hash_of("a", [1, 2])
