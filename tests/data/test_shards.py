"""WebDataset shards, from tars that the tests write."""

import gzip
import io
import json
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data import Shards
from ldm.data.preparing.decode import Decoder
from ldm.data.reading import tar
from ldm.data.sources.shard_names import expand
from tests.data.sources import encoded, is_sample_image, train_both


def write(path: Path, numbers: range, **more) -> Path:
    """A shard with the images of these numbers, their captions, classes and JSON."""
    with tarfile.open(path, "w") as file:
        for i in numbers:
            members = {"png": encoded(i), "txt": f"number {i}".encode(), "cls": str(i % 3).encode()}
            for ending, content in (members | {k: make(i) for k, make in more.items()}).items():
                if content is not None:
                    info = tarfile.TarInfo(f"deep/{i:06d}.{ending}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path) -> Path:
    """Four shards of eight images each."""
    folder = tmp_path / "my shards"
    folder.mkdir()
    for s in range(4):
        write(folder / f"train-{s:04d}.tar", range(8 * s, 8 * s + 8))
    return folder


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The shards that were decoded."""
    seen: list[str] = []
    table = Decoder.table

    def counted(self, split, folder, **options):
        seen.append(Path(split[0].where).name)
        return table(self, split, folder, **options)

    monkeypatch.setattr(Decoder, "table", counted)
    return seen


def test_shards_train_both_stages(shards, tmp_path):
    model = train_both(tmp_path / "runs", "data=shards", f"data.root={shards}/train-{{0000..0003}}.tar")
    assert model("number 3", steps=2)[0].size == (16, 16)


def test_samples_keep_their_captions_and_classes(shards, tmp_path):
    source = Shards(str(shards), val_share=0.25)
    train, val = source.tables(tmp_path / "cache")
    assert (len(train), len(val)) == (24, 8) and source.default_condition == "text"
    seen = []
    for table in (train, val):
        assert table.classes == ("0", "1", "2")
        for image, text, label in zip(table.images, table.columns["text"], table.columns["label"], strict=True):
            seen.append(int(text.removeprefix("number ")))
            assert is_sample_image(image, seen[-1]) and label == seen[-1] % 3
    assert sorted(seen) == list(range(32))


def test_they_are_decoded_once_and_the_pieces_removed(shards, tmp_path, decoded):
    first = Shards(str(shards)).tables(tmp_path / "cache")
    assert decoded == [f"train-{s:04d}.tar" for s in range(4)]
    again = Shards(str(shards)).tables(tmp_path / "cache")
    assert len(decoded) == 4 and again[0].key == first[0].key
    assert len(list((tmp_path / "cache").iterdir())) == 1
    write(shards / "train-0001.tar", range(8, 15))
    assert Shards(str(shards)).tables(tmp_path / "cache")[0].key != first[0].key


def test_an_interrupted_start_continues_with_the_shards_that_are_left(shards, tmp_path, decoded, monkeypatch):
    table = Decoder.table

    def killed(self, split, folder, **options):
        if split[0].where.endswith("0002.tar"):
            raise KeyboardInterrupt
        return table(self, split, folder, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "table", killed)
        Shards(str(shards)).tables(tmp_path / "cache")
    assert decoded == ["train-0000.tar", "train-0001.tar"]
    train, val = Shards(str(shards)).tables(tmp_path / "cache")
    assert decoded == [f"train-{s:04d}.tar" for s in range(4)] and len(train) + len(val) == 32


def test_processes_that_start_together_share_the_shards(shards, tmp_path, decoded):
    """Threads stand for processes: the locks are of open files."""
    made: list = []
    threads = [
        threading.Thread(target=lambda: made.append(Shards(str(shards)).tables(tmp_path / "cache"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(decoded) == [f"train-{s:04d}.tar" for s in range(4)]
    assert len(made) == 2 and np.array_equal(made[0][0].images, made[1][0].images)


def test_validation_shards_alternatives_missing_captions_and_maps(tmp_path, caplog):
    ids = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16) % 5
    buffer = io.BytesIO()
    np.save(buffer, ids)
    more = {
        "txt": lambda i: None if i == 2 else b"one way\nanother" if i == 1 else b"only",
        "json": lambda i: json.dumps({"text": "from JSON", "breed": ["pug", "corgi"][i % 2]}).encode(),
        "cls": lambda i: None,
        "map.npy": lambda i: buffer.getvalue(),
    }
    write(tmp_path / "a.tar", range(6), **more)
    write(tmp_path / "b.tar", range(6, 9), **more)
    source = Shards(str(tmp_path / "a.tar"), val_root=str(tmp_path / "b.tar"), columns={"text": "x", "label": "breed"})
    train, val = source.tables(tmp_path / "cache")
    assert (len(train), len(val)) == (6, 3)
    assert train.columns["text"] == ["only", "one way\nanother", "", "only", "only", "only"]
    assert "1 of 9 images have no caption" in caplog.text
    assert train.classes == ("corgi", "pug") and train.columns["label"].tolist() == [1, 0, 1, 0, 1, 0]
    assert np.array_equal(train.columns["map"][3], ids) and train.map_classes == tuple("01234")
    assert "text" not in Shards(str(tmp_path / "a.tar"), columns=["label"])._decoder.has


def test_an_empty_text_of_a_shard_hides_no_caption(tmp_path):
    row = {"text": None, "caption": "a cat", "label": "", "class": 3.0}
    gone = {"cls": lambda i: None, "txt": lambda i: None}
    write(tmp_path / "0.tar", range(2), json=lambda i: json.dumps(row).encode(), **gone)
    with tar.opened(str(tmp_path / "0.tar")) as store:
        rows = tar.samples_of(store, {"text": "text", "label": "label"})
    assert [(row.text, row.label) for row in rows] == [("a cat", 3)] * 2


def test_shards_to_validate_on_are_not_trained_on(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(shards)
    train, val = Shards(str(shards), val_root="train-0001.tar").tables(tmp_path / "cache")
    assert not set(train.names) & set(val.names) and all(name.startswith("train-0001.tar/") for name in val.names)
    assert "1 shard of data.root isn't trained on, since data.val_root has it" in caplog.text
    with pytest.raises(UserError, match="data.val_root has every shard of data.root"):
        Shards(str(shards), val_root=str(shards)).tables(tmp_path / "cache")


def test_compressed_and_remote_shards_are_copied_first(shards, tmp_path):
    pytest.importorskip("webdataset")
    wanted, _ = Shards(str(shards / "train-0000.tar")).tables(tmp_path / "cache")
    packed = tmp_path / "packed.tar.gz"
    with gzip.open(packed, "wb") as target, (shards / "train-0000.tar").open("rb") as plain:
        shutil.copyfileobj(plain, target)
    for root in (str(packed), f"pipe:cat '{shards / 'train-0000.tar'}'"):
        train, _ = Shards(root).tables(tmp_path / "cache")
        assert np.array_equal(train.images, wanted.images) and train.columns["text"] == wanted.columns["text"]


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as sink:
        for i in range(4):
            sink.write({"__key__": f"{i:04d}", "png": encoded(i), "json": {"text": f"number {i}"}, "cls": i % 2})
    train, val = Shards(str(tmp_path / "w.tar"), val_share=0.25).tables(tmp_path / "cache")
    assert (len(train), len(val)) == (3, 1) and train.classes == ("0", "1")
    assert all(is_sample_image(im, int(t[-1])) for im, t in zip(train.images, train.columns["text"], strict=True))


def test_bad_images_are_counted_over_all_shards(shards, tmp_path, caplog):
    write(shards / "train-0000.tar", range(8), png=lambda i: b"nothing" if i == 3 else encoded(i))
    with pytest.raises(UserError, match="1 of 32 images can't be used"):
        Shards(str(shards)).tables(tmp_path / "cache")
    train, val = Shards(str(shards), max_bad_share=0.1).tables(tmp_path / "cache")
    assert len(train) + len(val) == 31 and "1 image couldn't be used" in caplog.text


@pytest.mark.parametrize(
    ("root", "message"),
    [("nowhere", "there is no shard at nowhere"), ("x-{0..1}.tar", "no shard at x-0.tar"), ("*.tar", "no shards")],
)
def test_missing_shards_are_named(root, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        expand(root)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="bad.tar isn't a tar"), tar.opened(str(tmp_path / "bad.tar")):
        pass


def test_copies_of_an_image_stay_on_one_side(tmp_path, capsys, caplog):
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(2):  # of 10 images each, 3 are the same in both
        write(root / f"{shard}.tar", range(10), png=lambda i, s=shard: encoded(i if i < 3 else i + 10 * s))
    for share in (0.1, 0.3, 0.5):
        train, val = Shards(str(root), val_share=share).tables(tmp_path / "cache")
        seen = [{image.tobytes() for image in table.images} for table in (train, val)]
        assert len(train) + len(val) == 20 and not seen[0] & seen[1]
    assert "3 images copied byte for byte: copies stay on one side" in capsys.readouterr().out
    Shards(str(root / "0.tar"), val_root=str(root / "1.tar")).tables(tmp_path / "cache")
    assert "3 validation images are copies of training images, byte for byte" in caplog.text
