"""Hugging Face's data sets, from files that the tests write."""

from pathlib import Path

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data import HuggingFace
from ldm.data.sources.huggingface import DatasetStore
from tests.data.sources import encoded, is_sample_image, train_both

datasets = pytest.importorskip("datasets")
N = 24


def rows(**more) -> "datasets.Dataset":
    cells = [{"bytes": encoded(i), "path": None} for i in range(N)]
    features = {"image": datasets.Image()} | {name: kind for name, (kind, _) in more.items()}
    columns = {"image": cells} | {name: values for name, (_, values) in more.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def text():
    return datasets.Value("string"), [f"number {i}" for i in range(N)]


def source(path, tmp_path, **options) -> HuggingFace:
    return HuggingFace(str(path), cache_dir=str(tmp_path / "hf"), **options)


@pytest.fixture
def parquet(tmp_path) -> Path:
    path = tmp_path / "pictures-train.parquet"
    breeds = datasets.ClassLabel(names=["pug", "corgi", "husky"]), [i % 3 for i in range(N)]
    rows(caption=text(), breed=breeds).to_parquet(str(path))
    return path


def test_a_parquet_file_trains_both_stages(parquet, tmp_path):
    words = [f"data.dataset={parquet}", f"data.cache_dir={tmp_path / 'hf'}", "data.val_share=0.2"]
    model = train_both(tmp_path / "runs", "data=huggingface", *words)
    assert list(model.conditioner.parts) == ["text"]
    assert model("number 3", steps=2)[0].size == (16, 16)


def test_rows_keep_their_captions_and_labels(parquet, tmp_path):
    made = source(parquet, tmp_path, val_share=0.25, columns={"text": "caption", "label": "breed"})
    train, val = made.tables(tmp_path / "cache")
    assert made.name == "pictures-train" and made.default_condition == "text"
    assert (len(train), len(val)) == (18, 6)
    for table in (train, val):
        assert table.classes == ("pug", "corgi", "husky")
        for image, caption, label in zip(table.images, table.columns["text"], table.columns["label"], strict=True):
            i = int(caption.removeprefix("number "))
            assert is_sample_image(image, i) and label == i % 3


def test_it_is_decoded_once(parquet, tmp_path, monkeypatch):
    first = source(parquet, tmp_path, columns=["text"]).tables(tmp_path / "cache")
    monkeypatch.setattr(HuggingFace, "_decode", None)
    again = source(parquet, tmp_path, columns=["text"]).tables(tmp_path / "cache")
    assert first[0].key == again[0].key and "label" not in again[0].columns


def test_a_folder_that_datasets_saved_with_its_own_validation(tmp_path):
    parts = {"train": rows(text=text()), "test": rows(text=text()).select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    train, val = source(tmp_path / "saved", tmp_path).tables(tmp_path / "cache")
    assert (len(train), len(val)) == (N, 5)


def test_a_folder_of_parquet_files(parquet, tmp_path):
    (tmp_path / "data set").mkdir()
    parquet.rename(tmp_path / "data set" / "train-00000.parquet")
    assert len(source(tmp_path / "data set", tmp_path).tables(tmp_path / "cache")[0]) == 23


def test_alternative_and_missing_captions(tmp_path, caplog):
    texts = [["one way", "another"], [], None, *[["only"]] * (N - 3)]
    rows(captions=(datasets.Sequence(datasets.Value("string")), texts)).to_parquet(str(tmp_path / "x.parquet"))
    train, val = source(tmp_path / "x.parquet", tmp_path).tables(tmp_path / "cache")
    captions = [*train.columns["text"], *val.columns["text"]]
    assert captions.count("") == 2 and ["one way", "another"] in captions
    assert "have no caption" in caplog.text
    batch = train.batch(np.arange(len(train)), ["text"], np.full(len(train), 0.9))
    assert "another" in batch["text"] or ["one way", "another"] in val.columns["text"]


def test_arrays_maps_and_masks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3))
    ids = [{"bytes": _png(np.full((8, 8), i % 4, np.uint8)), "path": None} for i in range(N)]
    features = datasets.Features({"pixel_values": datasets.Array3D((8, 8, 3), "uint8"), "map": datasets.Image()})
    data = datasets.Dataset.from_dict({"pixel_values": pixels.astype(np.uint8).tolist(), "map": ids}, features=features)
    data.to_parquet(str(tmp_path / "arrays.parquet"))
    train, _ = source(tmp_path / "arrays.parquet", tmp_path).tables(tmp_path / "cache")
    for name, image, map_ in zip(train.names, train.images, train.columns["map"], strict=True):
        i = int(name.split("/")[0])
        assert np.array_equal(image, pixels[i].transpose(2, 0, 1)) and (map_ == i % 4).all()
    assert train.map_classes == ("0", "1", "2", "3")


def _png(array: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "data.split=trian"),
        ({"val_split": "tset"}, "data.val_split=tset"),
        ({"columns": {"text": "captoin"}}, "Did you mean 'caption'"),
        ({"image": "picture"}, "has no column 'picture'"),
    ],
)
def test_what_is_not_there_is_named(parquet, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        source(parquet, tmp_path, **options).tables(tmp_path / "cache")


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match="can't be opened"):
        source(tmp_path / "nothing.parquet", tmp_path).tables(tmp_path / "cache")


def test_copies_of_an_image_stay_on_one_side(tmp_path, capsys):
    cells = [{"bytes": encoded(i % 9), "path": None} for i in range(12)]  # 3 of them twice
    data = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    data.shuffle(seed=1).to_parquet(str(tmp_path / "a.parquet"))
    for share in (0.1, 0.3, 0.5):
        train, val = source(tmp_path / "a.parquet", tmp_path, val_share=share).tables(tmp_path / "cache")
        seen = [{image.tobytes() for image in table.images} for table in (train, val)]
        assert len(train) + len(val) == 12 and not seen[0] & seen[1]
    assert "3 images copied byte for byte" in capsys.readouterr().out


def test_sizes_follow_the_order_of_rows(tmp_path):
    cells = [{"bytes": encoded(i, 8 + 8 * i, 16), "path": None} for i in range(3)]
    data = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    store = DatasetStore("d", data.select([2, 0]), {"image": "image"})
    assert [len(store.read(s.image)) for s in store.samples] == [store.entries[s.image][0] for s in store.samples]
