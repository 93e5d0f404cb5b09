"""Axes of a grid, and the sheet."""

import time

import pytest
from PIL import Image

from ldm.common.errors import UserError
from ldm.ui.generating.settings import Settings
from ldm.ui.generating.xy import NOT_VARIED, cells, parse_axis, sheet


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("seed", "1, 5, 5", (1, 5)),
        ("seed", "1-4", (1, 2, 3, 4)),
        ("steps", "10-30:10, 50", (10, 20, 30, 50)),
        ("guidance", "1, 2.5", (1.0, 2.5)),
        ("sampler", "euler,heun", ("euler", "heun")),
        ("checkpoint", "step-00000010.ckpt, finished", ("step-00000010.ckpt", "finished")),
    ],
)
def test_values_as_they_are_typed(name: str, text: str, values: tuple) -> None:
    assert parse_axis(name, text).values == values


@pytest.mark.parametrize(
    ("name", "text"),
    [("seed", "x"), ("guidance", ""), ("height", "1"), ("seed", "9-1"), ("seed", "1-999"), ("seed", "0-99,1-100")],
)
def test_what_is_no_axis_is_refused(name: str, text: str) -> None:
    with pytest.raises(UserError):
        parse_axis(name, text)


def test_a_text_of_many_ranges_is_not_written_out() -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match="up to 100 images"):
        parse_axis("seed", ",".join(f"{i}-{i + 99}" for i in range(0, 10_000_000, 100)))
    assert parse_axis("seed", ",".join(["0-99"] * 3)).values == tuple(range(100))
    assert time.monotonic() - begun < 5


def test_a_part_of_a_prompt_is_not_replaced_by_more_than_a_prompt_may_have() -> None:
    base = Settings("run", prompt="a" * 5000)
    with pytest.raises(UserError, match="prompt has 5,000,000 characters"):
        cells(base, parse_axis("prompt part", "a, " + "b" * 1000), parse_axis(NOT_VARIED, ""))
    assert cells(base, parse_axis("prompt part", "a, bb"), parse_axis(NOT_VARIED, ""))[1].prompt == "bb" * 5000


def test_cells_go_row_by_row() -> None:
    base = Settings("run", prompt="a cat on a cat", checkpoint="old", n=8)
    made = cells(base, parse_axis("prompt part", "cat, dog"), parse_axis("checkpoint", "new, finished"))
    assert [(one.prompt, one.checkpoint, one.n) for one in made] == [
        ("a cat on a cat", "new", 1),
        ("a dog on a dog", "new", 1),
        ("a cat on a cat", None, 1),
        ("a dog on a dog", None, 1),
    ]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (("seed", "1"), ("seed", "2"), "both axes"),
        (("seed", "1-50"), ("steps", "1-3"), "150|50 x 3"),
        (("prompt part", "cow, dog"), (NOT_VARIED, ""), "no 'cow'"),
    ],
)
def test_grids_that_cannot_be_are_refused(x: tuple, y: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words):
        cells(Settings("run", prompt="a cat"), parse_axis(*x), parse_axis(*y))


def test_each_cell_of_the_sheet_has_its_image() -> None:
    colours = ["red", "green", "blue", "black"]
    x, y = parse_axis("seed", "0-1"), parse_axis("guidance", "1, 2")
    made = sheet([Image.new("RGB", (96, 96), colour) for colour in colours], x, y)
    left, top = made.width - 2 * 100, made.height - 2 * 100
    found = [made.getpixel((left + 50 + 100 * column, top + 50 + 100 * row)) for row in (0, 1) for column in (0, 1)]
    assert found == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0)]


def test_one_row_without_labels_is_as_wide_as_its_images() -> None:
    assert sheet([Image.new("L", (200, 96))], parse_axis(NOT_VARIED, ""), parse_axis(NOT_VARIED, "")).size == (204, 100)
