"""Metadata as tools and people write them: what is intended is read, and what isn't read is named."""

import json
import unicodedata
from pathlib import Path

import pytest

from ldm.common.errors import UserError
from ldm.data.folders.listing import samples
from ldm.data.reading.findings import Findings
from ldm.data.reading.metadata_files import report_missing_images
from ldm.data.reading.sample import COLUMNS, Sample
from ldm.data.reading.split_folders import FolderOptions
from ldm.data.reading.store import FolderStore
from tests.data import folders

ALL = {key: key for key in COLUMNS}


def images(root: Path, *paths: str) -> Path:
    for path in paths or [f"{i}.png" for i in range(4)]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"not looked at")
    return root


def describe(root: Path, *rows: dict) -> None:
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def found(root: Path, under: str = "", columns=ALL) -> tuple[list[Sample], Findings]:
    findings = Findings()
    return samples(FolderStore(root), under, columns, findings), findings


def texts(root: Path, **options) -> list:
    return [sample.text for sample in found(root, **options)[0]]


# Columns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, "", "  ", [], [" "]])
def test_an_empty_column_hides_no_other(tmp_path, empty):
    root = images(tmp_path)
    describe(
        root, *({"file_name": f"{i}.png", "text": empty, "caption": f"no. {i}", "class": f"c{i % 2}"} for i in range(4))
    )
    rows, findings = found(root)
    assert [(row.text, row.label) for row in rows] == [(f"no. {i}", f"c{i % 2}") for i in range(4)]
    assert not findings.warnings
    (root / "metadata.jsonl").unlink()
    head = "file_name,label,text,class,prompt"
    (root / "metadata.csv").write_text("\n".join([head, *(f"{i}.png,nan,,{i % 2},no. {i}" for i in range(4))]))
    assert [(row.text, row.label) for row in found(root)[0]] == [(f"no. {i}", i % 2) for i in range(4)]


def test_a_column_of_ours_with_gaps_that_another_fills_is_reported(tmp_path):
    root = images(tmp_path)
    describe(root, *({"file_name": f"{i}.png", "text": "a" if i else None, "caption": "b"} for i in range(4)))
    rows, findings = found(root)
    assert [row.text for row in rows] == [None, "a", "a", "a"]
    hint = "data.columns='{text: caption}' reads that column instead"
    assert findings.warnings == [f"'text' of metadata.jsonl is empty in 1 row where 'caption' isn't: {hint}"]


def test_a_column_of_labels_with_gaps_is_reported(tmp_path):
    root = images(tmp_path)
    describe(root, *({"file_name": f"{i}.png", "class": "a" if i else None} for i in range(4)))
    rows, findings = found(root)
    assert all(row.label is None for row in rows)
    assert any(
        "'class' of metadata.jsonl isn't read as labels: 1 row of 4 without one" in note for note in findings.warnings
    )


def test_words_for_nothing_in_a_table(tmp_path):
    root = images(tmp_path)
    (root / "metadata.csv").write_text(
        "file_name,mask,label,text\n0.png,nan,3,NaN\n1.png,None,nan,None\n2.png,m.png,,x\n3.png,,4,\n"
    )
    rows, _ = found(root)
    assert [row.mask for row in rows] == [None, None, "m.png", None]
    assert [row.label for row in rows] == [3, None, None, 4] and [row.text for row in rows] == [None, None, "x", None]
    (root / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{i}.png,{'none' if i else 'x'}\n" for i in range(4))
    )
    assert [row.label for row in found(root)[0]] == ["x", "none", "none", "none"], "a class may be called so"


def test_the_numbering_of_rows_is_no_column(tmp_path):
    root = images(tmp_path)
    (root / "metadata.csv").write_text(
        "Unnamed: 0,,file_name,path\n" + "".join(f"{i},{i},{i}.png,x/{i}\n" for i in range(4))
    )
    _, findings = found(root)
    (note,) = findings.warnings
    assert note.endswith("metadata.csv is read (path)"), "no hint: no column of words"


def test_blank_captions_and_halves_of_letters(tmp_path):
    root = images(tmp_path)
    values = ["  ", ["", "a"], "cut \ud83d", ["\n", "b", " "]]
    describe(root, *({"file_name": f"{i}.png", "text": value} for i, value in enumerate(values)))
    assert texts(root) == ["", ["a"], "cut \ufffd", ["b"]]


def test_a_label_of_a_float_that_is_a_number(tmp_path):
    root = images(tmp_path)
    describe(root, *({"file_name": f"{i}.png", "label": value} for i, value in enumerate([1.0, float("nan"), 10, "a"])))
    assert [row.label for row in found(root)[0]] == [1, None, 10, "a"]
    describe(root, {"file_name": "0.png", "label": 1.5})
    with pytest.raises(UserError, match=r"metadata.jsonl, 0.png: the label 1.5 is neither a number nor a word"):
        found(root)


def test_class_folders_beside_metadata_without_labels(tmp_path):
    root = images(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)))
    describe(root, *({"file_name": f"{name}/{i}.png", "text": name} for name in ("cat", "dog") for i in range(2)))
    rows, findings = found(root)
    assert {row.label for row in rows} == {None} and "data.classes=true reads them" in findings.remarks[0]
    kept = ["cat", "cat", "dog", "dog"]
    assert [row.label for row in found(root, columns={"label": "label"})[0]] == kept
    rows = samples(FolderStore(root), "", ALL, options=FolderOptions(classes=True))
    assert [(row.label, row.text) for row in rows] == list(zip(kept, kept, strict=True))


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "file_name;text\r\n0.png;a, b\r\n1.png;c\r\n".encode("utf-8-sig"),
        "file_name\ttext\n0.png\ta, b\n1.png\tc\n".encode("utf-16"),
        b'text,file_name\n"a, b",0.png\nc,1.png\n \n,\n',
        b'image,caption\n0.png,"a, b"\n1.png,c\n',
        b'file_name, text\n0.png, "a, b"\n1.png, "c"\n',
        b"sep=;\r\nfile_name;text\r\n0.png;a, b\r\n1.png;c\r\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, content):
    (images(tmp_path) / "metadata.csv").write_bytes(content)
    rows, _ = found(tmp_path)
    assert [(row.image, row.text) for row in rows] == [("0.png", "a, b"), ("1.png", "c")]


def test_a_short_line_of_a_table(tmp_path):
    root = images(tmp_path)
    (root / "metadata.csv").write_text("file_name,text,label\n0.png,a,1\n1.png,b\n")
    rows, findings = found(root)
    assert [row.label for row in rows] == [1, None]
    assert findings.warnings == [
        "1 line of metadata.csv with fewer fields than columns (line 3): the missing ones count as empty"
    ]
    (root / "metadata.csv").write_text("sep=;\nfile_name;text\n0.png;a;b\n")
    with pytest.raises(UserError, match="line 3 has 3 fields for 2 columns: put captions that contain semicolons in"):
        found(root)
    (root / "metadata.csv").write_text("text,file_name\na,0.png\na stray line\n")
    with pytest.raises(UserError, match="metadata.csv, line 3 has no file_name"):
        found(root)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["list", "open list", "objects", "commas"])
def test_json_that_is_not_an_object_a_line(tmp_path, indent, form):
    rows = [{"file_name": f"{i}.png", "text": f"no. {i}", "tags": [{"a": 1}]} for i in range(2)]
    if form == "list":
        content = json.dumps(rows, indent=indent)
    elif form == "open list":
        content = "[\n" + "".join(f"{json.dumps(row, indent=indent)},\n" for row in rows) + "]\n"
    else:
        content = (",\n" if form == "commas" else "\n").join(json.dumps(row, indent=indent) for row in rows)
    (images(tmp_path) / "metadata.jsonl").write_text(content)
    assert texts(tmp_path) == ["no. 0", "no. 1"]


@pytest.mark.parametrize("line", ["7", "[1]", '{"file_name": ', '{"file_name": 1' + "0" * 5000 + "}", "[" * 99999])
def test_lines_that_are_no_rows_are_reported_by_number(tmp_path, line):
    (images(tmp_path) / "metadata.jsonl").write_text('{"file_name": "0.png"}\n' + line)
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2 is"):
        found(tmp_path)


def test_a_dead_link_and_bytes_of_zero_are_reported(tmp_path):
    root = images(tmp_path)
    (root / "metadata.jsonl").symlink_to(root / "nowhere")
    with pytest.raises(UserError, match=r"metadata.jsonl is a link to a missing file: fetch"):
        found(root)
    (root / "metadata.jsonl").unlink()
    (root / "metadata.jsonl").write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r"metadata.jsonl holds zero bytes"):
        found(root)


# Paths ---------------------------------------------------------------------------------------------------------------


def test_names_are_found_however_their_letters_are_written(tmp_path):
    names = [unicodedata.normalize("NFD", f"café{i}.png") for i in range(2)]
    root = images(tmp_path, *names)
    composed = unicodedata.normalize("NFC", "café0.png")
    describe(root, {"file_name": composed, "text": "a"}, {"file_name": names[1], "text": "b"})
    assert [(row.image, row.text) for row in found(root)[0]] == [(names[0], "a"), (names[1], "b")]
    (root / "metadata.jsonl").unlink()
    (root / f"{composed[:-4]}.txt").write_text("a")
    assert [row.caption for row in found(root)[0]] == [f"{composed[:-4]}.txt", None]


def test_absolute_paths_inside_of_the_data(tmp_path):
    root = images(tmp_path, "a/0.png", "a/1.png")
    describe(root / "a", {"file_name": str(root / "a/0.png"), "text": "a"})
    assert found(root)[0][0].image == "a/0.png"
    describe(root / "a", {"file_name": "/elsewhere/2.png"})
    with pytest.raises(UserError, match="lies outside the data: write paths from the metadata's own folder"):
        found(root)


def test_rows_of_neither_split_are_reported(tmp_path):
    root = images(tmp_path, "train/0.png", "val/0.png")
    names = ("train/0.png", "val/0.png", "tarin/9.png", "9.png")
    describe(root, *({"file_name": name, "text": "x"} for name in names))
    store, findings = FolderStore(root), Findings()
    report_missing_images(
        [sample for part in ("train", "val") for sample in samples(store, part, ALL, findings)], findings
    )
    assert findings.warnings == ["2 rows of metadata.jsonl whose image doesn't exist: tarin/9.png, 9.png"]


def test_metadata_at_two_levels(tmp_path):
    root = images(tmp_path, "a/0.png", "a/1.png", "2.png")
    describe(root, *({"file_name": name, "text": "top", "label": 1} for name in ("a/0.png", "a/1.png", "2.png")))
    describe(root / "a", {"file_name": "0.png", "text": "inner"}, {"file_name": "1.png", "text": ""})
    rows, findings = found(root)
    found_rows = {row.image: (row.text, row.label) for row in rows}
    assert found_rows == {"a/0.png": ("inner", 1), "a/1.png": ("top", 1), "2.png": ("top", 1)} and len(rows) == 3
    assert "2 images described by several files of metadata (a/metadata.jsonl, metadata.jsonl)" in findings.warnings[0]


@pytest.mark.parametrize("name", ["Metadata.CSV", "METADATA.jsonl"])
@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
def test_metadata_in_any_case_and_code(tmp_path, name, code):
    root = folders.lay_out(tmp_path / "d", "1.png", "2.png")
    rows = ["file_name,text", "1.png,é", "2.png,é"] if name.endswith("CSV") else [
        json.dumps({"file_name": f"{i}.png", "text": "é"}) for i in (1, 2)
    ]  # fmt: skip
    (root / name).write_bytes("\n".join(rows).encode(code))
    assert list(folders.tables(root)[0].columns["text"]) == ["é"]
    (root / "metadata.csv").write_text("file_name\n1.png")
    with pytest.raises(UserError, match="holds both .*; remove one of them"):
        folders.tables(root)


@pytest.mark.parametrize(
    ("column", "options", "text", "message"),
    [
        ("text", {}, ["1girl", "solo", "hat"], "data.captions=tags"),
        ("text", {"captions": "tags"}, "1girl, solo, hat", ""),
        ("tags", {"columns": {"text": "tags"}}, "1girl, solo, hat", "are tags: each list is joined"),
        ("tags", {}, None, "data.columns='{text: tags}' reads that one as captions"),
    ],
)
def test_lists_of_tags(tmp_path, caplog, column, options, text, message):
    root = folders.lay_out(tmp_path / "d", "1.png", "2.png")
    folders.describe(root, *({"file_name": f"{i}.png", column: ["1girl", "solo", "hat"]} for i in (1, 2)))
    train, _ = folders.tables(root, **options)
    assert (train.columns["text"][0] if text else train.columns.get("text")) == text
    assert message in " ".join((*folders.facts(root).notes, *folders.facts(root).asides))


def test_labels_of_a_table_with_leading_zeros_are_words_and_blanks_around_them_nothing(tmp_path):
    images(tmp_path, *[f"{i}.png" for i in range(3)])
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,007\n1.png, 7\n2.png,012\n")
    assert [row.label for row in found(tmp_path)[0]] == ["007", "7", "012"]
    (tmp_path / "metadata.csv").write_text("file_name, label\n0.png, 2\n1.png,10 \n2.png,2\n")
    assert [row.label for row in found(tmp_path)[0]] == [2, 10, 2]
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png, cat\n1.png,cat \n2.png, \n")
    assert [row.label for row in found(tmp_path)[0]] == ["cat", "cat", None]


def test_an_empty_label_is_none(tmp_path):
    describe(images(tmp_path), {"file_name": "0.png", "label": ""}, {"file_name": "1.png", "label": " dog "})
    assert [row.label for row in found(tmp_path)[0]] == [None, "dog"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("['a cat', \"it's\"]", ["a cat", "it's"]),
        ("['a cat']", ["a cat"]),
        ("['a cat' 'a dog']", "['a cat' 'a dog']"),
        ("[a cat]", "[a cat]"),
        ("['a cat', 3]", "['a cat', 3]"),
    ],
)
def test_lists_as_pandas_writes_them_are_alternatives(tmp_path, cell, text):
    quoted = cell.replace('"', '""')
    (images(tmp_path, "0.png") / "metadata.csv").write_text(f'file_name,text\n0.png,"{quoted}"\n')
    rows, findings = found(tmp_path)
    assert rows[0].text == text
    assert any("holds lists in 1 row" in aside for aside in findings.remarks) == isinstance(text, list)


def rows_of_splits(column: str, *words: str) -> list[dict]:
    return [{"file_name": f"{i}.png", "text": "a", column: word} for i, word in enumerate(words)]


@pytest.mark.parametrize(
    ("words", "training", "validation", "left"),
    [
        (("train", "train", "val", "test"), ["0.png", "1.png"], ["2.png"], ["3.png"]),
        (("TRAIN", "Test", "training", ""), ["0.png", "2.png"], ["1.png"], ["3.png"]),
    ],
)
def test_a_column_of_splits_is_the_split(tmp_path, words, training, validation, left):
    root = folders.lay_out(tmp_path / "d", *[f"{i}.png" for i in range(4)])
    describe(root, *rows_of_splits("Split", *words))
    train, val = folders.tables(root)
    assert list(train.names) == training and list(val.names) == validation
    facts = folders.facts(root)
    assert facts.split == "the column 'Split' of metadata.jsonl" and list(facts.left_out) == left


def test_a_column_of_splits_gives_way_to_folders_and_other_words_are_none(tmp_path):
    root = folders.lay_out(tmp_path / "d", *folders.numbered("train", "val", n=2))
    rows = [{"file_name": f"{folder}/{i}.png", "split": folder} for folder in ("val", "train") for i in range(2)]
    describe(root, *rows)
    train, _ = folders.tables(root)
    assert list(train.names) == ["train/0.png", "train/1.png"]
    assert any("isn't read as the split, since there is val/" in note for note in folders.facts(root).notes)
    other = folders.lay_out(tmp_path / "e" / "d", *[f"{i}.png" for i in range(3)])
    describe(other, *rows_of_splits("split", "train", "blue", "red"))
    folders.tables(other)
    assert folders.facts(other).split.startswith("a fixed random")
    assert any("columns of metadata.jsonl that aren't read: split" in aside for aside in folders.facts(other).asides)


@pytest.mark.parametrize(
    "name", ["conditioning_image", "Conditioning Image", "control_path", "conditioning_image_file_name"]
)
def test_usual_names_of_paths_are_read_where_files_are_there(tmp_path, name):
    root = folders.lay_out(tmp_path / "d", *(f"{f}{i}.png" for f in ("", "cond/", "m/") for i in range(3)))
    rows = [{"file_name": f"{i}.png", name: f"cond/{i}.png", "mask_path": f"m/{i}.png"} for i in range(3)]
    describe(root, *rows)
    train, _ = folders.tables(root)
    assert {"control", "mask"} <= {*train.columns} and not folders.facts(root).left_out


def test_names_of_paths_that_are_nowhere_are_columns_that_are_not_read(tmp_path):
    root = folders.lay_out(tmp_path / "d", "0.png", "1.png")
    describe(root, *({"file_name": f"{i}.png", "text": "a", "mask_path": f"elsewhere/{i}.png"} for i in range(2)))
    assert "mask" not in folders.tables(root)[0].columns
    assert "columns of metadata.jsonl that aren't read: mask_path" in folders.facts(root).asides


def test_usual_columns_in_any_case(tmp_path):
    root = folders.lay_out(tmp_path / "d", "0.png", "1.png", "2.png")
    (root / "metadata.csv").write_text("File Name,Label,Caption\n" + "".join(f"{i}.png,x,cat {i}\n" for i in range(3)))
    train, val = folders.tables(root)
    assert sorted([*train.columns["text"], *val.columns["text"]]) == ["cat 0", "cat 1", "cat 2"]
    assert train.classes == ("x",)


# Names from another place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("/home/me/data/sub/a.png", "/home/me/data/sub/b.png"),
        ("C:\\Users\\me\\sub\\a.png", "C:\\Users\\me\\sub\\b.png"),
        ("https://example.org/sub/a.png", "https://example.org/sub/b.png"),
        ("a.png", "b.png"),
        ("sub/a", "sub/b"),
        ("SUB/A.PNG", "SUB/B.PNG"),
    ],
)
def test_names_from_another_place_are_found_by_their_last_parts(tmp_path, name, other):
    root = images(tmp_path, "sub/a.png", "sub/b.png", "sub/m.png")
    describe(root, {"file_name": name, "text": "one"}, {"file_name": other, "text": "two", "mask": "/x/sub/m.png"})
    rows, findings = found(root)
    assert [(row.image, row.text, row.mask) for row in rows] == [
        ("sub/a.png", "one", None),
        ("sub/b.png", "two", "sub/m.png"),
    ]
    assert "all found by the last parts" in findings.remarks[0]


@pytest.mark.parametrize("name", ["a.png", "x/a.png", "c.png", "../sub/a.png"])
def test_names_that_are_not_found_or_stand_for_several_are_refused(tmp_path, name):
    describe(images(tmp_path, "sub/a.png", "more/a.png"), {"file_name": name})
    with pytest.raises(UserError, match="none of the images that it names exists|outside the data"):
        found(tmp_path)


def test_where_a_name_is_found_the_others_are_missing(tmp_path):
    describe(images(tmp_path, "a.png", "sub/b.png"), {"file_name": "a.png"}, {"file_name": "b.png"})
    assert [row.image for row in found(tmp_path)[0]] == ["a.png", "b.png"]


def test_a_table_of_tabs(tmp_path):
    (images(tmp_path) / "metadata.tsv").write_text("file_name\ttext\tlabel\n0.png\ta cat, sitting\t3\n")
    assert [(row.image, row.text, row.label) for row in found(tmp_path)[0]] == [("0.png", "a cat, sitting", 3)]


def test_several_labels_of_one_image_are_reported(tmp_path):
    rows = [("0.png", "cat"), ("0.png", "dog"), ("1.png", "cat"), ("1.png", "cat")]
    describe(images(tmp_path), *({"file_name": name, "label": label} for name, label in rows))
    assert found(tmp_path)[1].warnings == [
        "1 image has several labels in the metadata, and is one sample for each label (0.png: cat, dog)"
    ]
