"""Files beside images: captions are read, and files that aren't captions are reported."""

import json
from pathlib import Path

import pytest

from ldm.common.errors import UserError
from ldm.data.folders.listing import samples
from ldm.data.reading.captions.files import read_caption
from ldm.data.reading.findings import Findings
from ldm.data.reading.sample import COLUMNS, Sample
from ldm.data.reading.store import FolderStore
from ldm.data.reading.unread import report_unread
from ldm.data.sources.folder import Folder
from tests.data import folders

ALL = {key: key for key in COLUMNS}
PPM = b"P6\n4 4\n255\n" + bytes(48)
SROIE = "377,117,463,117,465,130,378,130,TAN WOON YANN OF 5, JALAN SAGU"
DOTA = "imagesource:GoogleEarth\ngsd:0.14\n2753 2408 2861 2385 2888 2468 2805 2502 plane 0"
KITTI = "Car 0.00 0 -1.57 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 -1.62"


def lay_out(root: Path, **files: str | bytes) -> Path:
    """Three images and, by ending, a file beside each."""
    for i in range(3):
        (root / f"{i}.png").write_bytes(PPM)
        for kind, content in files.items():
            (root / f"{i}.{kind}").write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def found(root: Path) -> tuple[list[Sample], Findings]:
    findings, store = Findings(), FolderStore(root)
    rows = samples(store, "", ALL, findings)
    report_unread([path for path in store.entries if path not in findings.read], findings)
    return rows, findings


@pytest.mark.parametrize(
    "boxes", ["0 0.51 0.52 0.2 0.3\n1 0.1 0.1 0.2 0.2\n", "3 1 0.5 2e-1 0.5 1 1", SROIE, DOTA, KITTI]
)
def test_boxes_are_no_captions(tmp_path, boxes):
    rows, findings = found(lay_out(tmp_path, txt=boxes, caption="a cat"))
    assert [row.caption for row in rows] == [f"{i}.caption" for i in range(3)]
    assert "3 .txt files beside images hold boxes" in findings.warnings[0] and len(findings.warnings) == 1
    (tmp_path / "1.txt").write_text("3 cats in 2 rows")
    rows, findings = found(tmp_path)
    assert rows[1].caption == "1.txt" and "some .txt files hold lines of numbers" in findings.warnings[0]


@pytest.mark.parametrize("text", ["7", "2 cats, 3 dogs, 4 mice, 5 birds", "1girl, 2023, solo"])
def test_numbers_that_are_captions(tmp_path, text):
    assert [row.caption for row in found(lay_out(tmp_path, txt=text))[0]] == ["0.txt", "1.txt", "2.txt"]


@pytest.mark.parametrize("kind", ["txt", "caption"])
def test_caption_files_beside_captions_in_metadata_are_reported(tmp_path, kind):
    lay_out(tmp_path, **{kind: "better"})
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n2.png,c\n")
    rows, findings = found(tmp_path)
    assert [row.text for row in rows] == ["a", "b", "c"]
    assert [
        note
        for note in findings.warnings
        if f"3 .{kind} files not read, since the images have captions in the metadata" in note
    ]


def test_two_files_of_captions_for_an_image_are_reported(tmp_path):
    rows, findings = found(lay_out(tmp_path, txt="a", caption="b"))
    assert rows[0].caption == "0.txt"
    (note,) = findings.warnings
    assert note.startswith("3 .caption files not read, since the images have another caption file: 0.c")


def test_files_of_json_with_a_caption(tmp_path):
    root = lay_out(tmp_path, json=json.dumps({"url": "u", "caption": "a cat", "width": 4}))
    rows, findings = found(root)
    assert [row.caption for row in rows] == ["0.json", "1.json", "2.json"] and not findings.warnings
    assert read_caption(FolderStore(root), "0.json") == "a cat"
    assert findings.remarks == ["captions come from 3 .json files"]
    rows, findings = found(lay_out(tmp_path, json=json.dumps({"shapes": [], "imagePath": "0.png"})))
    assert (
        rows[0].caption is None
        and "hold no caption under a usual key, their keys: shapes, imagePath" in findings.warnings[0]
    )


def test_folders_of_img2dataset(tmp_path):
    for shard in ("00000", "00001"):
        (tmp_path / shard).mkdir()
        for kind, content in (("jpg", PPM), ("txt", b"a cat"), ("json", b'{"caption": "a cat"}')):
            (tmp_path / shard / f"{shard}0000.{kind}").write_bytes(content)
        (tmp_path / f"{shard}_stats.json").write_text("{}")
        (tmp_path / f"{shard}.parquet").write_bytes(b"PAR1")
    rows, findings = found(tmp_path)
    assert {row.label for row in rows} == {None} and rows[0].caption == "00000/000000000.txt" and not findings.warnings
    assert "2 .json files not read, since the images have another caption file" in findings.remarks[1]
    for file in tmp_path.rglob("*.txt"):
        file.unlink()
    assert [row.caption for row in found(tmp_path)[0]] == ["00000/000000000.json", "00001/000010000.json"]


def test_captions_in_metadata_and_in_files(tmp_path):
    root = lay_out(tmp_path, txt="from the file")
    row = {"file_name": "0.png", "text": "from the row"}
    (root / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, [row, {"file_name": "1.png"}, {"file_name": "2.png"}]))
    )
    rows, findings = found(root)
    assert [(row.text, row.caption) for row in rows] == [("from the row", None), (None, "1.txt"), (None, "2.txt")]
    (note,) = findings.warnings
    assert note.endswith("1 .txt file not read, since the images have captions in the metadata: 0.txt")


@pytest.mark.parametrize("content", [b"\0\0\0", "a cat".encode("utf-16-le"), b"\xff\xff\xff"])
def test_files_that_hold_no_text_are_refused(tmp_path, content):
    root = lay_out(tmp_path, txt=content)
    with pytest.raises(UserError, match=r"0.txt (holds zero bytes|isn't UTF-8)"):
        read_caption(FolderStore(root), "0.txt")


def test_a_caption_in_utf_16_is_read(tmp_path):
    root = lay_out(tmp_path, txt="ein Hund, 犬".encode("utf-16"))
    assert read_caption(FolderStore(root), "0.txt") == "ein Hund, 犬"


def test_a_dead_link_is_refused(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    (lay_out(root) / "0.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="0.txt is a link to a missing file"):
        Folder(str(root)).tables(tmp_path / "cache")


def test_kinds_that_are_not_read_are_bounded(tmp_path):
    root = lay_out(tmp_path, **{f"x{i}": "x" for i in range(9)})
    (root / "more.7z").write_bytes(b"7z")
    _, findings = found(root)
    assert len(findings.warnings) == 1 and "and 3 more kinds; captions come from" in findings.warnings[0]
    assert findings.left_out["more.7z"].startswith(".7z files are archives, which aren't opened: unpack them")


@pytest.mark.parametrize("content", ["", " \n"])
def test_files_of_nothing_make_no_captions(tmp_path, caplog, content):
    root = folders.lay_out(tmp_path / "d", "1.png", "2.png", "3.png", "1.txt")
    (root / "1.txt").write_text(content)
    assert "text" not in folders.tables(root)[0].columns
    assert "1 .txt file beside images are all empty and give no captions (1.txt)" in caplog.text


def test_few_captions_are_reported_with_the_way_out(tmp_path, caplog):
    root = folders.lay_out(tmp_path / "d", *(f"{i}.png" for i in range(12)), "1.txt")
    folders.tables(root)
    assert "11 of 12 images have no caption" in caplog.text and "data.columns='[label]' trains without" in caplog.text
    assert "text" not in folders.tables(root, columns=["label"])[0].columns


def test_empty_texts_of_metadata_are_no_captions(tmp_path, caplog):
    root = folders.lay_out(tmp_path / "d", "1.png", "2.png")
    folders.describe(root, {"file_name": "1.png", "text": ""}, {"file_name": "2.png", "text": " "})
    assert "text" not in folders.tables(root)[0].columns and "every caption is empty" in caplog.text


def test_the_tags_of_image_boards_are_one_caption(tmp_path):
    root = folders.lay_out(tmp_path / "d", "1.png", "2.png", "1.json", "2.json")
    (root / "1.json").write_text('{"tags": ["1girl", "solo"]}')
    (root / "2.json").write_text('{"tag_string": "2girls hat", "tags": ["x"]}')
    assert sorted(text for t in folders.tables(root) for text in t.columns["text"]) == ["1girl, solo", "2girls hat"]
