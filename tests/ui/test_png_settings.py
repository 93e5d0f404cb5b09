"""Settings in PNGs: ours, sample.py's, other tools'."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.common.errors import UserError
from ldm.images import save_png
from ldm.ui.generating.png_settings import from_parameters, read_settings, text_chunks, to_parameters
from ldm.ui.generating.settings import Settings, check_settings, from_dict, parse_interval

FULL = Settings(
    run="emoji",
    checkpoint="step-00000500.ckpt",
    prompt='a cat, "quoted": yes\nin two lines',
    negative="blur",
    labels=("3", "a fish, fried"),
    seed=7,
    n=1,
    width=32,
    height=16,
    sampler="euler",
    steps=9,
    guidance=2.5,
    interval=(0.1, 5.0),
    loras=(("style", 0.8),),
    controlnets=(("edges", 1.0, 0.0, 0.5, "0123456789abcdef"),),
)


def png(path: Path, text: dict[str, str]) -> Path:
    save_png(Image.new("RGB", (4, 4)), path, text)
    return path


def test_our_settings_come_back_whole(tmp_path: Path) -> None:
    assert read_settings(png(tmp_path / "a.png", text_chunks(FULL, (32, 16), {})))[0] == FULL


def test_parameters_are_as_other_tools_write_them() -> None:
    text = to_parameters(
        Settings("emoji", prompt="a cat", negative="a dog", seed=3, guidance=3.0),
        (32, 32),
        {"steps": 20, "sampler": "euler"},
    )
    assert text == (
        "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: euler, CFG scale: 3, Seed: 3, Size: 32x32, Model: emoji"
    )


def test_parameters_of_another_tool_are_understood() -> None:
    text = "a (red:1.2) cat,\nsecond line\nNegative prompt: blur, text\n"
    text += 'Steps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 64x48, Model: "a, b"'
    settings = from_parameters(text)
    assert settings.prompt == "a (red:1.2) cat,\nsecond line"
    assert settings.negative == "blur, text"
    assert (settings.sampler, settings.steps, settings.guidance, settings.seed) == ("euler_ancestral", 25, 7.5, 42)
    assert (settings.width, settings.height, settings.run) == (None, None, "a, b"), "its size is its own model's"


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20).map(str.strip)
PROMPT = LINE.filter(lambda text: not text.startswith("Negative prompt:"))


@given(PROMPT, LINE, st.integers(0, 2**40), st.lists(LINE.filter(lambda t: t and "|" not in t), max_size=2))
def test_what_parameters_say_comes_back(prompt: str, negative: str, seed: int, labels: list[str]) -> None:
    one = Settings(
        "run, with: signs", prompt=prompt, negative=negative, seed=seed, labels=tuple(labels), steps=5, sampler="heun"
    )
    back = from_parameters(to_parameters(one, (32, 16), {}))
    assert (back.prompt, back.negative, back.seed, back.labels) == (prompt, negative, seed, tuple(labels))
    assert back.run == one.run


def test_an_image_of_sample_py_leaves_the_models_own_options_unset(tmp_path: Path) -> None:
    own = {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance": 3.0, "eta": 0.5, "spacing": None, "shift": 1.0}
    about = {"prompt": "a cat", "seed": 3, "run": "emoji", **own, "sampler": "euler"}
    settings, remarks = read_settings(png(tmp_path / "a.png", {"ldm": json.dumps(about)}), {"emoji": own})
    assert (settings.prompt, settings.seed, settings.sampler, settings.n) == ("a cat", 3, "euler", 1)
    assert settings.eta is None and settings.shift is None, "euler knows no eta"
    assert remarks == []


def test_a_grid_of_sample_py_and_its_initial_image_are_remarked(tmp_path: Path) -> None:
    about = {"seed": 0, "prompts": ["a", "b"], "run": "emoji", "image": "cat.png", "strength": 0.5}
    settings, remarks = read_settings(png(tmp_path / "a.png", {"ldm": json.dumps(about)}))
    assert settings.prompt == "a" and settings.image is None
    assert len(remarks) == 2 and "cat.png" in remarks[1]


def test_what_the_page_has_no_fields_for_is_reported(tmp_path: Path) -> None:
    about = {"prompt": "a", "seed": 0, "lora": "mine:0.8", "clip": 2.0, "order": 3, "map": "a.png", "pad": None}
    about |= {"loras": [["a", 1.0]] * 3, "run": "emoji"}
    _, remarks = read_settings(png(tmp_path / "a.png", {"ldm": json.dumps(about)}), {"emoji": {"order": 3}})
    text_of_remarks = " ".join(remarks)
    for word in ("lora=mine:0.8", "clip=2.0", "map=a.png", "loras beyond the first 2"):
        assert word in text_of_remarks
    assert "order" not in text_of_remarks and "pad" not in text_of_remarks
    text = "a cat\nSteps: 5, Sampler: Restart, CFG scale: 2, Seed: 1, Size: 8x8, Clip skip: 2, Model: emoji"
    _, remarks = read_settings(png(tmp_path / "b.png", {"parameters": text}))
    assert remarks == ["The page ignores these settings: Sampler: Restart, Size: 8x8, Clip skip: 2."]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Seed", "1e400"), ("Seed", "-1"), ("Seed", str(2**53)), ("Seed", ""), ("Steps", "20.5"), ("Steps", "99999"),
        ("Steps", "0"), ("CFG scale", "7,5"), ("CFG scale", "nan"), ("CFG scale", "1e400"),
        ("Denoising strength", "abc"), ("Denoising strength", "1.5"),
    ],
)  # fmt: skip
def test_a_number_that_is_ignored_is_reported(tmp_path: Path, key: str, value: str) -> None:
    pairs = {"Steps": "5", "CFG scale": "2", "Seed": "1", "Denoising strength": "0.5"} | {key: value}
    line = ", ".join(f"{name}: {text_of_remarks}" for name, text_of_remarks in pairs.items())
    for text in (f"a cat\n{line}", f"a cat\n{line}, Model: emoji"):
        settings, remarks = read_settings(png(tmp_path / "a.png", {"parameters": text}))
        assert remarks == [f"The page ignores these settings: {key}: {value}."]
        assert settings.steps == (5 if key != "Steps" else None) and settings.seed == (1 if key != "Seed" else 0)
        assert settings.guidance == (2 if key != "CFG scale" else None)


def test_what_stands_before_the_first_pair_is_reported_and_is_no_pair(tmp_path: Path) -> None:
    _, remarks = read_settings(png(tmp_path / "a.png", {"parameters": "a\n(b), Steps: 5, Seed: 1, CFG scale: 2"}))
    assert remarks == ["The page ignores these settings: (b)."]
    assert from_parameters("(a cat), left: red, right: blue").prompt == "(a cat), left: red, right: blue"


def test_remarks_are_bounded_and_of_whole_letters(tmp_path: Path) -> None:
    for text in (
        {"parameters": "a\nSteps: 5, Seed: 1, CFG scale: 2, Note: " + "long " * 10**5},
        {"ldm": json.dumps({"seed": 0, "n": 1, "prompt": "\ud800", "note": "x" * 10**5, "image": "long " * 10**5})},
    ):
        settings, remarks = read_settings(png(tmp_path / "a.png", text))
        assert settings.prompt in ("a", "\ufffd") and remarks and all(len(remark) < 600 for remark in remarks)


@pytest.mark.parametrize(
    "text",
    [{}, {"ldm": "{"}, {"ldm": "[" * 100_000}, {"ldm": "[1]"}, {"ldm": '{"n": "x"}'}, {"ldm": '{"prompt": [1]}'}],
)
def test_an_image_without_settings_or_with_damaged_ones_is_refused(tmp_path: Path, text: dict[str, str]) -> None:
    with pytest.raises(UserError, match="settings"):
        read_settings(png(tmp_path / "a.png", text))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="can't be read as an image"):
        read_settings(tmp_path / "a.png")


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 65},
        {"steps": 0},
        {"sampler": "eulr"},
        {"seed": -1},
        {"width": 8},
        {"mask": "x"},
        {"feather": 999},
        {"prompt": "a" * 10_001},
        {"negative": "a" * 10_001},
        {"guidance": float("nan")},
        {"guidance": -1e299},
        {"guidance": 1e37},
        {"shift": 1e39},
        {"eta": 10**400},
        {"interval": [-1e400, 1e400]},
        {"loras": [["a", 1e39]]},
        {"controlnets": [["a", 1e39, 0, 1, "x"]]},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        check_settings(from_dict({"run": "emoji"} | wrong))


def test_an_interval_is_two_numbers() -> None:
    assert parse_interval("0.2; 5") == (0.2, 5.0) and parse_interval(" ") is None
    with pytest.raises(UserError, match="two numbers"):
        parse_interval("1")


@pytest.mark.parametrize(("name", "most"), [("ldm", 2_000_000), ("parameters", 1_000_000)])
def test_settings_of_any_length_are_not_read(tmp_path: Path, name: str, most: int) -> None:
    save_png(Image.new("L", (8, 8)), tmp_path / "a.png", {name: "x: y, " * (most // 6 + 1)})
    with pytest.raises(UserError, match=f"'{name}' may have up to {most} characters"):
        read_settings(tmp_path / "a.png")


@pytest.mark.parametrize("number", ["1e400", "-Infinity", "NaN"])
def test_numbers_that_json_has_not_are_not_read(tmp_path: Path, number: str) -> None:
    save_png(Image.new("L", (8, 8)), tmp_path / "a.png", {"ldm": f'{{"seed": 1, "interval": [0, {number}]}}'})
    with pytest.raises(UserError, match="isn't JSON of finite numbers"):
        read_settings(tmp_path / "a.png")


def test_settings_behind_the_pixels_are_read_too(tmp_path: Path) -> None:
    save_png(Image.new("L", (8, 8)), tmp_path / "a.png", {"ldm": '{"seed": 5}'})
    content = (tmp_path / "a.png").read_bytes()
    begin, end, after = content.index(b"tEXt") - 4, content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    moved = content[:begin] + content[end:after] + content[begin:end] + content[after:]
    (tmp_path / "b.png").write_bytes(moved)
    assert read_settings(tmp_path / "b.png")[0].seed == 5


@pytest.mark.parametrize("piece", ["w ", " ", "x: y, ", 'x: "y, ', '"', "\\a", "a:,", "Negative prompt: \n", "s" * 70])
def test_long_settings_of_another_tool_are_read_in_no_time(piece: str) -> None:
    text = f"a\nSteps: 5, Seed: 1, Size: 8x8, {piece * (100_000 // len(piece))}."
    started = time.process_time()
    from_parameters(text)
    assert time.process_time() - started < 5, "with the square of it it would be minutes"
