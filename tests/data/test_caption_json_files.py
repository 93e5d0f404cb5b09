"""Captions in NAME.json beside an image."""

import json

import pytest

from ldm.data.reading.captions.json_files import caption_in
from tests.data.folders import facts, lay_out, tables


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"caption": "a cat", "tags": ["cat"]}, "a cat"),
        ({"Caption": "a cat"}, "a cat"),
        ({"tags": ["cat", "sofa"], "title": "x"}, "cat, sofa"),
        ({"tags": "cat, sofa"}, "cat, sofa"),
        ({"tags": {"general": ["sofa"], "species": ["cat"]}}, "sofa, cat"),
        ({"description": "", "title": "IMG_0.jpg"}, None),
        ({"meta": {"prompt": "a cat", "seed": 1}}, "a cat"),
        ({"title": "Untitled"}, None),
    ],
)
def test_a_caption_by_its_names(row, text):
    assert caption_in(row) == text
    assert caption_in(row, "title") == row.get("title")


def beside(root, *rows: dict, name: str = "{}.json"):
    lay_out(root, *(f"{i}.jpg" for i in range(len(rows))))
    for i, row in enumerate(rows):
        (root / name.format(i)).write_text(json.dumps(row))
    return root


def captions(pair) -> list[str]:
    return sorted(str(text) for table in pair for text in table.columns.get("text", ()))


def test_what_else_is_in_there_is_reported(tmp_path):
    root = beside(tmp_path / "d", *({"caption": f"cat {i}", "title": f"Tom {i}", "width": 4} for i in range(3)))
    assert captions(tables(root)) == ["cat 0", "cat 1", "cat 2"]
    assert "in 3 files NAME.json, only the caption is read, not title" in facts(root).asides


def test_another_key_is_named_and_read(tmp_path):
    root = beside(tmp_path / "d", *({"title": f"Tom {i}", "url": "https://a"} for i in range(3)))
    assert not captions(tables(root))
    assert "no caption under a usual key, but title: data.columns='{text: title}' reads 'title'" in facts(root).notes[0]
    assert captions(tables(root, columns={"text": "title"})) == ["Tom 0", "Tom 1", "Tom 2"]
    (root / "0.txt").write_text("other")
    assert captions(tables(root, columns={"text": "title"}))[0] == "Tom 0"


@pytest.mark.parametrize(
    "name", ["{}.jpg.json", "{}.jpg.supplemental-metadata.json", "{}.jpg.suppl.json", "{}.jpg.s.json"]
)
def test_google_takeouts_descriptions(tmp_path, name):
    root = beside(tmp_path / "d", *({"title": f"{i}.jpg", "description": f"dog {i}"} for i in range(3)), name=name)
    assert captions(tables(root)) == ["dog 0", "dog 1", "dog 2"]


def test_a_name_that_nothing_has_is_reported(tmp_path):
    root = lay_out(tmp_path / "d", "0.png", "1.png")
    tables(root, columns={"text": "title"})
    assert "data.columns names title, but no metadata.jsonl, metadata.csv or NAME.json has it" in facts(root).notes[0]


def test_json_of_other_kinds_is_named_by_its_keys(tmp_path):
    root = beside(tmp_path / "d", *({"version": "5", "shapes": [{"label": "cat"}]} for _ in range(2)))
    assert not captions(tables(root))
    assert "hold no caption under a usual key, their keys: version, shapes" in facts(root).notes[0]
