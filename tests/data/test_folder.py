import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.common.errors import UserError
from ldm.data.sources.folder import Folder


def save(path: Path, value=0, size=(8, 8), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def describe(root: Path, rows: list[dict]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def load(root: Path, **options):
    """Both tables, decoded again each time, with every image checked to belong to its name."""
    return Folder(str(root), **options).tables(root.parent / "cache")


def by_name(tables) -> dict[str, tuple]:
    """name -> (first pixel, label or None, text or None) over both splits."""
    out = {}
    for table in tables:
        label, text = table.columns.get("label"), table.columns.get("text")
        for i, name in enumerate(table.names):
            value = int(table.images[i, 0, 0, 0])
            out[name] = value, None if label is None else int(label[i]), None if text is None else text[i]
    return out


def test_class_subfolders_are_labels(tmp_path):
    for i in range(12):
        save(tmp_path / "d" / ("cat" if i % 3 else "ant") / "deep" / f"{i}.png", (i, 0, 0))
    source = Folder(str(tmp_path / "d"))
    train, val = source.tables(tmp_path / "cache")
    assert train.classes == ("ant", "cat") and source.default_condition == "label" and source.name == "d"
    found = by_name((train, val))
    assert len(found) == 12 and len(val) == 1
    for name, (value, label, _) in found.items():
        assert value == int(Path(name).stem) and label == (1 if value % 3 else 0)


def test_metadata_gives_all_columns(tmp_path):
    root = tmp_path / "d"
    rows = []
    for i in range(10):
        save(root / "images" / f"{i}.png", (i, 0, 0))
        save(root / "maps" / f"{i}.png", i, mode="L")
        save(root / "masks" / f"{i}.png", 255 if i % 2 else 0, mode="L")
        save(root / "edges" / f"{i}.png", 20 * i, mode="L")
        rows.append(
            {"file_name": f"images/{i}.png", "text": f"no. {i}, 'été' 猫", "label": i % 2, "map": f"maps/{i}.png",
             "mask": f"masks/{i}.png", "control": f"edges/{i}.png", "attributes": {"a": 1}}
        )  # fmt: skip
    describe(root, rows)
    source = Folder(str(root), val_share=0.3)
    train, val = source.tables(tmp_path / "cache")
    assert source.default_condition == "text" and (len(train), len(val)) == (7, 3)
    assert train.map_classes == val.map_classes == tuple(str(i) for i in range(10)) and train.classes == ("0", "1")
    for table in (train, val):
        number = table.images[:, 0, 0, 0].astype(int)
        assert table.columns["text"] == [f"no. {i}, 'été' 猫" for i in number]
        np.testing.assert_array_equal(table.columns["label"], number % 2)
        np.testing.assert_array_equal(table.columns["map"][:, 3, 3], number)
        np.testing.assert_array_equal(table.columns["mask"][:, 3, 3], 255 * (number % 2))
        np.testing.assert_array_equal(table.columns["control"][:, 0, 3, 3], 20 * number)
        batch = table.batch(np.arange(len(table)), ["image", "label", "text", "map", "mask", "control"])
        assert batch["mask"].shape == (len(table), 1, 8, 8) and set(batch["mask"].unique().tolist()) <= {0.0, 1.0}


def test_columns_are_chosen_and_renamed(tmp_path):
    root = tmp_path / "d"
    for i in range(4):
        save(root / f"{i}.png", i)
    describe(root, [{"file_name": f"{i}.png", "caption": [f"a{i}", f"b{i}"], "label": "x"} for i in range(4)])
    train, _ = load(root, columns={"text": "caption"})
    assert train.columns["text"][0] == [f"a{train.names[0][0]}", f"b{train.names[0][0]}"] and "label" in train.columns
    assert list(load(root, columns=["label"])[0].columns) == ["label"]
    with pytest.raises(UserError, match="no column 'captoin'.*'caption'"):
        load(root, columns={"text": "captoin"})
    with pytest.raises(UserError, match="no column 'txt'.*'text'"):
        Folder(str(root), columns=["txt"])


def test_captions_beside_images(tmp_path, caplog):
    root = tmp_path / "d"
    for i in range(6):
        save(root / f"{i}.png", (i, 0, 0))
        if i < 4:
            (root / f"{i}.txt").write_text(f"\ufeffthe {i}th\n", "utf-8")
    (root / "4.txt").write_text("one line\n\nanother\n", "utf-8")
    with caplog.at_level(logging.WARNING, "ldm"):
        found = by_name(load(root, val_share=0.1))
    assert found["2.png"] == (2, None, "the 2th") and found["4.png"][2] == "one line\n\nanother"
    assert found["5.png"][2] == ""  # reported, not silent
    assert "have no caption" in caplog.text and "5.png" in caplog.text
    assert Folder(str(root)).default_condition == "text"


def test_train_and_validation_folders_are_the_splits(tmp_path):
    root = tmp_path / "d"
    for i in range(6):
        save(root / "train" / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    for i in range(6, 9):
        save(root / "test" / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    train, val = load(root)
    assert sorted(Path(name).stem for name in train.names) == list("012345")
    assert sorted(Path(name).stem for name in val.names) == list("678")
    assert train.classes == ("a", "b")
    assert all(label == value % 2 for value, label, _ in by_name((train, val)).values())


def test_split_folders_with_metadata_of_their_own(tmp_path):
    root = tmp_path / "d"
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        for i in numbers:
            save(root / split / f"{i}.png", i)
        describe(root / split, [{"file_name": f"{i}.png", "text": f"t{i}"} for i in numbers])
    train, val = load(root)
    assert train.columns["text"] == ["t0", "t1", "t2", "t3"] and val.columns["text"] == ["t4", "t5"]


def test_val_root_is_the_validation_split(tmp_path):
    for i in range(4):
        save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png", i)
        save(tmp_path / "v" / "ab"[i % 2] / f"{i}.png", i)
    train, val = load(tmp_path / "d", val_root=str(tmp_path / "v"))
    assert len(train) == len(val) == 4 and train.key != val.key
    save(tmp_path / "v" / "c" / "9.png")
    with pytest.raises(UserError, match="class 'c', which training doesn't have.*data.classes=false"):
        load(tmp_path / "d", val_root=str(tmp_path / "v"))


def pack(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def content(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_a_zip_is_read_in_place(tmp_path):
    files = {f"photos/{'ab'[i % 2]}/{i}.png": content(i) for i in range(8)}
    pack(tmp_path / "my photos.zip", {**files, "__MACOSX/photos/._1.png": b"x", "photos/.DS_Store": b"x"})
    source = Folder(str(tmp_path / "my photos.zip"))
    tables = source.tables(tmp_path / "cache")
    assert source.name == "my photos" and tables[0].classes == ("a", "b")
    found = by_name(tables)
    assert len(found) == 8 and all(label == value % 2 for value, label, _ in found.values())


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/out.png", "C:/out.png", "..\\out.png"])
def test_a_zip_whose_paths_lead_out_is_refused(tmp_path, name):
    pack(tmp_path / "d.zip", {"1.png": content(1), name: content(2)})
    with pytest.raises(UserError, match="leads out"):
        load(tmp_path / "d.zip")


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png"])
def test_metadata_that_leads_out_is_refused(tmp_path, name):
    save(tmp_path / "d" / "1.png")
    describe(tmp_path / "d", [{"file_name": "1.png"}, {"file_name": name}])
    with pytest.raises(UserError, match="outside"):
        load(tmp_path / "d")


def test_packed_bombs_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.data.reading.store.MAX_BYTES", 2000)
    pack(tmp_path / "d.zip", {**{f"{i}.png": content(i) for i in range(5)}, "bomb.png": bytes(5000)})
    tables = load(tmp_path / "d.zip", max_bad_share=0.5)
    assert len(tables[0]) + len(tables[1]) == 5


def test_bad_images_are_left_out_with_their_path_and_counted(tmp_path, caplog):
    root = tmp_path / "d"
    for i in range(1, 40):
        save(root / f"{i:02d}.png", (i, 0, 0))
        (root / f"{i:02d}.txt").write_text(f"t{i}")
    (root / "20.png").write_bytes(b"no picture")
    (root / "30.png").write_bytes((root / "31.png").read_bytes()[:45])
    with caplog.at_level(logging.WARNING, "ldm"):
        tables = load(root, max_bad_share=0.06)
    found = by_name(tables)
    assert len(found) == 37 and "20.png" not in found and "30.png" not in found
    assert all(text == f"t{value}" == f"t{int(name[:2])}" for name, (value, _, text) in found.items())
    assert "20.png" in caplog.text and "30.png" in caplog.text and "2 images couldn't be used" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ldm"):
        assert by_name(load(root, max_bad_share=0.06)) == found  # from the cache, and reported again
    assert "2 images couldn't be used" in caplog.text


def test_too_many_bad_images_stop_the_run(tmp_path):
    root = tmp_path / "d"
    for i in range(20):
        save(root / f"{i}.png")
    (root / "7.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 20 images.*7\.png.*max_bad_share=0.01"):
        load(root)
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_that_metadata_names_but_are_not_there_count_as_bad(tmp_path):
    root = tmp_path / "d"
    for i in range(5):
        save(root / f"{i}.png", i)
    describe(root, [{"file_name": f"{i}.png", "text": "t"} for i in range(6)])
    tables = load(root, max_bad_share=0.5)
    assert len(by_name(tables)) == 5
    with pytest.raises(UserError, match="doesn't exist"):
        load(root)


def test_a_map_of_another_shape_is_bad(tmp_path):
    root = tmp_path / "d"
    rows = []
    for i in range(6):
        save(root / f"{i}.png", (i, 0, 0), (16, 8))
        save(root / "maps" / f"{i}.png", i, (8, 16) if i == 3 else (32, 16), "L")
        rows.append({"file_name": f"{i}.png", "map": f"maps/{i}.png"})
    describe(root, rows)
    tables = load(root, max_bad_share=0.5)
    assert len(by_name(tables)) == 5 and "3.png" not in by_name(tables)
    assert (tables[0].columns["map"][:, 0, 0] == tables[0].images[:, 0, 0, 0]).all()


def test_sizes_are_the_images_own_or_requested(tmp_path):
    root = tmp_path / "d"
    for i in range(4):
        save(root / f"{i}.png", i, (12, 8))
    assert load(root)[0].images.shape[1:] == (3, 8, 12)
    assert load(root, size=6)[0].images.shape[1:] == (3, 6, 6)
    save(root / "other.png", 0, (9, 9))
    with pytest.raises(UserError, match="2 sizes.*8x12.*data.size"):
        load(root)
    assert load(root, size=[4, 6])[0].images.shape[1:] == (3, 4, 6)
    assert load(root, size=4, channels=1, bits=8)[0].images.shape[1:] == (1, 4, 4)


def test_channels_and_bits_are_the_images_own(tmp_path):
    rng = np.random.default_rng(0)
    five = rng.integers(0, 65536, (6, 5, 8, 8), dtype=np.uint16)
    (tmp_path / "five").mkdir()
    for i, array in enumerate(five):
        np.save(tmp_path / "five" / f"{i}.npy", array)
    train, val = load(tmp_path / "five")
    assert train.images.dtype == np.uint16 and train.preprocess.shape == (5, 8, 8)
    for table in (train, val):
        np.testing.assert_array_equal(table.images, five[[int(name[0]) for name in table.names]])
    for i in range(4):
        save(tmp_path / "grey" / f"{i}.png", i, mode="L")
    assert load(tmp_path / "grey")[0].preprocess.shape == (1, 8, 8)
    save(tmp_path / "grey" / "colour.png", (1, 2, 3))
    assert load(tmp_path / "grey")[0].preprocess.shape == (3, 8, 8)


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch):
    root = tmp_path / "d"
    for i in range(4):
        save(root / f"{i}.png", (i, 0, 0))
    first = load(root)
    monkeypatch.setattr("ldm.images.Preprocess.array", lambda *args: pytest.fail("decoded again"))
    assert load(root)[0].key == first[0].key
    monkeypatch.undo()
    save(root / "2.png", (200, 0, 0), (8, 8))
    second = load(root)
    assert second[0].key != first[0].key
    assert by_name(second)["2.png"][0] == 200
    assert load(root, size=4)[0].key != second[0].key


def test_decoding_on_threads_gives_the_same(tmp_path, monkeypatch):
    root = tmp_path / "d"
    for i in range(30):
        save(root / f"{i}.png", (i, 0, 0))
    monkeypatch.setattr("ldm.data.preparing.decode._BIG_FILE", 0)
    monkeypatch.setattr("ldm.data.preparing.decode._CHUNK_BYTES", 5 * 192)
    found = by_name(load(root))
    assert len(found) == 30 and all(int(Path(name).stem) == value for name, (value, *_) in found.items())


@pytest.mark.parametrize("make", ["missing", "empty", "one"])
def test_too_few_images_are_reported(tmp_path, make):
    root = tmp_path / "d"
    if make != "missing":
        root.mkdir()
    if make == "one":
        save(root / "1.png")
    with pytest.raises(UserError, match="doesn't exist" if make == "missing" else r"too few images \([01]\)"):
        load(root)


def test_broken_metadata_and_missing_labels_are_reported(tmp_path):
    root = tmp_path / "d"
    for i in range(3):
        save(root / f"{i}.png")
    (root / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"file_name": \n')
    with pytest.raises(UserError, match="line 2 isn't JSON"):
        load(root)
    describe(root, [{"file_name": "0.png"}, {"text": "a"}])
    with pytest.raises(UserError, match="line 2 has no file_name"):
        load(root)
    describe(root, [{"file_name": f"{i}.png", **({"label": 1} if i else {})} for i in range(3)])
    with pytest.raises(UserError, match="0.png has no label"):
        load(root)


def test_metadata_may_be_a_table_of_commas(tmp_path, caplog):
    root = tmp_path / "d"
    for i in range(10):
        save(root / f"{i}.png", (i, 0, 0))
    rows = [f'{i}.png,"no. {i}, été ""猫""",{i},{i * i}' for i in range(10)]
    (root / "metadata.csv").write_text("\n".join(["\ufefffile_name,text,label,other", *rows]), "utf-8")
    for table in load(root):
        number = table.images[:, 0, 0, 0].astype(int)
        assert table.columns["text"] == [f'no. {i}, été "猫"' for i in number]
        np.testing.assert_array_equal(table.columns["label"], number)
        assert table.classes == tuple("0123456789")  # in the order of numbers
    assert not caplog.records

    describe(root, [{"file_name": "0.png"}])
    with pytest.raises(UserError, match=r"holds both metadata.jsonl and metadata.csv"):
        load(root)


def test_tables_that_are_not_whole_are_refused(tmp_path):
    root = tmp_path / "d"
    for i in range(30):
        save(root / f"{i}.png")

    def table(text: str) -> None:
        (root / "metadata.csv").write_text(text)

    table("file_name,text\n0.png,a cat, sleeping\n")
    with pytest.raises(
        UserError, match="line 2 has 3 fields for 2 columns: put captions that contain commas in double"
    ):
        load(root)
    table('file_name,text\n0.png,"a\n')
    with pytest.raises(UserError, match="can't be read"):
        load(root)
    table("file_name,text,text\n0.png,a,b\n")
    with pytest.raises(UserError, match="names a column twice"):
        load(root)
    table("file_name, text,label\n" + "".join(f"{i}.png,a,{'12x'[i % 3]}\n" for i in range(30)))
    assert load(root)[0].classes == ("1", "2", "x"), "words, as one of them is"


def test_a_caption_may_hold_any_separator_of_lines(tmp_path):
    root = tmp_path / "d"
    for i in range(4):
        save(root / f"{i}.png")
    rows = [
        json.dumps({"file_name": f"{i}.png", "text": "one\u2028two\x85three"}, ensure_ascii=False) for i in range(4)
    ]
    (root / "metadata.jsonl").write_text("\r\n".join(rows), "utf-8")
    assert set(load(root)[0].columns["text"]) == {"one\u2028two\x85three"}


def test_captions_that_would_be_lost_are_reported(tmp_path, caplog):
    root = tmp_path / "d"
    for i in range(4):
        save(root / f"{i}.png")
    (root / "captions.csv").write_text("file_name,text\n0.png,a\n")
    load(root)
    assert "captions.csv looks like a table of images (columns: file_name, text): to read it, rename it" in caplog.text
    (root / "captions.csv").rename(root / "metadata.csv")
    (root / "metadata.csv").write_text("picture,text\n0.png,a\n")
    with pytest.raises(UserError, match="no column file_name, .* its columns are picture, text"):
        load(root)
    (root / "metadata.csv").write_text("file_name,text\n,a\n")
    with pytest.raises(UserError, match="line 2 has no file_name"):
        load(root)
    (root / "metadata.csv").write_text("file_name,says\n" + "".join(f"{i}.png,a\n" for i in range(4)))
    load(root)
    assert "d/metadata.csv is read (says); data.columns='{text: says}'" in caplog.text


def test_a_file_that_is_no_zip_is_reported(tmp_path):
    (tmp_path / "d.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="can't be read as a .zip"):
        load(tmp_path / "d.zip")


def test_wrong_options_are_reported_before_any_file_is_read():
    for options, message in (
        ({"val_share": 0}, "val_share"),
        ({"size": [1, 2, 3]}, "data.size"),
        ({"resize": "crop"}, "resize=crop"),
        ({"low": 3}, "low=3"),
    ):
        with pytest.raises(UserError, match=message):
            Folder("nowhere", **options)


def test_maps_that_are_not_wanted_are_not_taken_for_images(tmp_path, caplog):
    folder = tmp_path / "mapped"
    folder.mkdir()
    rows = []
    for i in range(4):
        for name in (f"{i}.png", f"map-{i}.png"):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / name)
        rows.append(json.dumps({"file_name": f"{i}.png", "map": f"map-{i}.png", "text": "a square"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    train, _ = Folder(str(folder), columns=["text"]).tables(tmp_path / "cache")
    assert set(train.columns) == {"text"} and "left out" not in caplog.text


@pytest.mark.parametrize("cached", [False, True])
def test_arrays_of_more_channels_than_rows_need_their_number(tmp_path, monkeypatch, cached):
    root = tmp_path / "d"
    root.mkdir()
    for i in range(3):
        np.save(root / f"{i}.npy", np.broadcast_to(np.arange(30, dtype=np.uint8), (24, 24, 30)))
    if cached:  # by the code before, which took the first axis for the channels
        with monkeypatch.context() as before:
            before.setattr("ldm.images.files.axes.SURE", 99)
            assert load(root)[0].images.shape[1:] == (24, 24, 30)
    with pytest.raises(UserError, match="give their number as data.channels="):
        load(root)
    train, _ = load(root, channels=30)
    assert train.images.shape[1:] == (30, 24, 24) and (train.images[0, 3] == 3).all()


def test_a_name_steers_no_terminal_and_no_reason_is_lost(tmp_path, caplog):
    for i in range(8):
        save(tmp_path / "d" / f"{i}.png", i)
    for i, content in enumerate([b"", b"%PDF", b"<html>", b"8BPS\0\1", b"\xff\xd8"]):
        (tmp_path / "d" / f"bad{i}\n999 images\x1b[31m.png").write_bytes(content)
    load(tmp_path / "d", size=4, max_bad_share=0.5)
    assert "\\n999 images\\x1b[31m.png" in caplog.text and "\x1b" not in caplog.text and "\n999" not in caplog.text
    assert "for other reasons" in caplog.text
    with pytest.raises(UserError, match=r"bad0\\n999 images\\x1b"):
        load(tmp_path / "d", size=4)
