import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from ldm.common.errors import UserError
from ldm.data.sources.torchvision_sets import TorchVision


def write_mnist(root: Path, seed: int = 0, dataset: str = "MNIST") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A few images in MNIST's own file format."""
    rng = np.random.default_rng(seed)
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    out = {}
    for split, n in (("train", 30), ("t10k", 12)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels.tobytes())
        out[split] = images, labels
    return out


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_what_is_on_disk_needs_no_network(tmp_path, offline, dataset):
    files = write_mnist(tmp_path, dataset=dataset)
    source = TorchVision(dataset, root=str(tmp_path))
    for table, split in zip(source.tables(tmp_path / "cache"), ("train", "t10k"), strict=True):
        images, labels = files[split]
        np.testing.assert_array_equal(table.images[:, 0], images)
        np.testing.assert_array_equal(table.columns["label"], labels)
        assert table.columns["label"].dtype == np.int64 and len(table.classes) == 10
    assert source.name == dataset.lower() and source.default_condition == "label"


def test_size_and_channels_can_be_chosen(tmp_path):
    images, labels = write_mnist(tmp_path)["train"]
    train, _ = TorchVision(root=str(tmp_path), size=32, channels=3).tables(tmp_path / "cache")
    assert train.images.shape == (30, 3, 32, 32)
    np.testing.assert_array_equal(train.columns["label"], labels)
    assert abs(train.images.mean() - images.mean()) < 2
    np.testing.assert_array_equal(train.images[:, 0], train.images[:, 2])


def test_other_files_under_the_same_name_are_other_data(tmp_path):
    write_mnist(tmp_path / "a", 0)
    write_mnist(tmp_path / "b", 1)
    tables = [TorchVision(root=str(tmp_path / name)).tables(tmp_path / "cache")[0] for name in "ab"]
    assert tables[0].key != tables[1].key
    assert (np.asarray(tables[0].images) != np.asarray(tables[1].images)).any()


def test_a_missing_data_set_without_a_network_is_reported(tmp_path, offline):
    with pytest.raises(UserError, match="can't be downloaded"):
        TorchVision("MNIST", root=str(tmp_path)).tables(tmp_path / "cache")


def test_a_misspelt_name_is_reported(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'FashionMNIST'"):
        TorchVision("FasionMNIST", root=str(tmp_path)).tables(tmp_path / "cache")


def test_any_labelled_class_will_do_and_is_split_where_it_isnt(tmp_path, monkeypatch):
    class Shapes:
        """Neither splits nor arrays, as Caltech101."""

        def __init__(self, root):
            self.size = 16

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return Image.new("RGB", (self.size, 12), (i, 0, 0)), i % 4

    monkeypatch.setattr(torchvision.datasets, "Shapes", Shapes, raising=False)
    train, val = TorchVision("Shapes", root=str(tmp_path), val_share=0.25).tables(tmp_path / "cache")
    assert (len(train), len(val)) == (30, 10) and train.images.shape[1:] == (3, 12, 16)
    seen = np.concatenate([train.images[:, 0, 0, 0], val.images[:, 0, 0, 0]])
    assert sorted(seen.tolist()) == list(range(40))
    np.testing.assert_array_equal(train.columns["label"], train.images[:, 0, 0, 0] % 4)
    assert train.classes == val.classes == ("0", "1", "2", "3")


def test_images_of_different_sizes_need_a_size(tmp_path, monkeypatch):
    class Mixed:
        def __init__(self, root):
            pass

        def __len__(self):
            return 10

        def __getitem__(self, i):
            return Image.new("L", (8 + i, 8)), 0

    monkeypatch.setattr(torchvision.datasets, "Mixed", Mixed, raising=False)
    with pytest.raises(UserError, match="set data.size"):
        TorchVision("Mixed", root=str(tmp_path)).tables(tmp_path / "cache")
    train, _ = TorchVision("Mixed", root=str(tmp_path), size=[8, 8]).tables(tmp_path / "cache")
    assert train.images.shape == (9, 1, 8, 8)
