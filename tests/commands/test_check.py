"""`ldm check`: a folder with every fault, each of which is found, and what training uses again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.commands import cli
from ldm.common.errors import UserError
from ldm.data.sources.folder import Folder
from tests.icc import display_p3

N = 40


def noise(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    """An image of its own: coarse colours with fine noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    fine = random.integers(-30, 31, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


def messy(root: Path) -> Path:
    """Forty good images, and one or two with each fault; train/ and val/ with captions and maps."""
    rows: dict[str, list] = {"train": [], "val": []}

    def add(split: str, name: str, image: Image.Image, text: str, **options) -> None:
        folder = root / split
        (folder / "maps").mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **options)
        ids = np.full((image.height, image.width), 3 if len(rows[split]) % 2 else 0, np.uint8)
        ids_name = f"maps/{Path(name).stem}.png"
        Image.fromarray(ids).save(folder / ids_name)
        label = "dog" if name.startswith("copy") else "cat"
        rows[split].append({"file_name": name, "text": text, "map": ids_name, "label": label})

    for i in range(N):
        add("train", f"{i:02d}.png", noise(i), f"photo of thing {i}")
    add("train", "uniform.png", Image.new("RGB", (32, 32), (9, 99, 9)), "photo of paint")
    add("train", "blurred.png", noise(50).filter(ImageFilter.GaussianBlur(7)), "photo of fog")
    add("train", "tiny.png", noise(51, 12, 12), "photo of a stamp")
    add("train", "wide.png", noise(52, 32, 96), "photo with a horizon on the left")
    add("train", "copy.png", noise(0), "photo of a copy")
    add("train", "near.jpg", noise(1), "photo of nearly a copy", quality=92)
    alpha = noise(53).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize((32, 32)))
    add("train", "alpha.png", alpha, "photo of glass")
    add("train", "profile.png", noise(54), "photo of a flower", icc_profile=display_p3())
    add("train", "silent.png", noise(55), "")
    add("val", "own.png", noise(60), "photo of something else")
    add("val", "known.png", noise(2), "photo of thing 2")
    (root / "train" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows["train"].append({"file_name": "broken.png", "text": "photo", "map": "maps/00.png", "label": "cat"})
    for split, lines in rows.items():
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def check(tmp_path: Path, root: Path, *more: str) -> dict:
    words = [f"data.root={root}", "data=folder", f"runs_dir={tmp_path / 'runs'}", "steps=0", *more]
    cli.run("check", words)
    return json.loads((tmp_path / "runs" / "check" / root.name / "check.json").read_text())


def test_every_fault_is_found(tmp_path, capsys):
    root = messy(tmp_path / "mess")
    small = ["vae.channels=[8]", "vae.stem=4", "network.channels=32", "network.depth=1", "batch_size=4", "steps=1"]
    found = check(tmp_path, root, "data.size=32", "data.max_bad_share=0.1", "trainer.max_steps=7", *small)
    findings = {finding["key"]: finding for finding in found["findings"]}
    assert findings["uniform"]["files"] == ["train/uniform.png"]
    assert findings["blurred"]["files"] == ["train/blurred.png"]
    assert findings["enlarged"]["files"] == ["train/tiny.png"]
    assert findings["cropped"]["files"] == ["train/wide.png"]
    assert findings["exact_copies"]["groups"] == [["train/00.png", "train/copy.png"], ["train/02.png", "val/known.png"]]
    assert findings["near_copies"]["groups"] == [["train/01.png", "train/near.jpg"]]
    assert findings["overlap"]["groups"] == [["train/02.png", "val/known.png"]]
    assert findings["no_caption"]["files"] == ["train/silent.png"]
    assert "photo" in findings["shared_words"]["sentence"]
    assert "dog: 1" in findings["rare_classes"]["sentence"] and "unbalanced_classes" in findings
    assert findings["ids_missing"]["sentence"].endswith("1, 2")
    assert list(found["data"]["bad"]) == ["train/broken.png"]
    notes = " ".join(found["data"]["counts"])
    assert "transparency" in notes and "profile" in notes
    assert found["sizes"] == {"32x32": N + 9, "12x12": 1, "32x96": 1}
    assert found["classes"]["dog"] == {"train": 1, "val": 0}
    assert found["map_ids"].keys() == {"0", "3"} and found["captions"]["commonest"]["photo"] == N + 10
    assert found["plan"]["vae"]["steps"] == 7 and found["plan"]["network"]["seconds_per_step"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20 and lines[-1].endswith("check.html")
    page = (tmp_path / "runs" / "check" / "mess" / "check.html").read_text()
    assert page.count("data:image/png;base64,") >= 9 and 'src="samples' not in page and "train/broken.png" in page


def test_what_is_prepared_is_used_by_training_and_nothing_else_is_written(tmp_path, capsys, monkeypatch):
    root = messy(tmp_path / "mess")
    before = sorted(root.rglob("*"))
    check(tmp_path, root, "data.size=32", "data.max_bad_share=0.1")
    assert sorted(root.rglob("*")) == before
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["cache", "check"]
    monkeypatch.setattr(Folder, "_decode", lambda *_: pytest.fail("decoded again"))
    train, _ = Folder(str(root), size=32, max_bad_share=0.1).tables(tmp_path / "runs" / "cache" / "data")
    assert len(train) == N + 9


def test_a_size_is_suggested_and_a_refusal_is_told(tmp_path, capsys):
    root = messy(tmp_path / "mess")
    found = check(tmp_path, root)
    assert found["needs"] == {"size": 32} and "1 of" in found["refusal"]
    out = capsys.readouterr().out
    assert "training stops at these data: 1 of 52 images can't be used" in out and "data.max_bad_share=0.02" in out
    assert "several sizes: checked at data.size=32" in out and "data.size=32" in out.splitlines()[-2]
    assert not list((tmp_path / "runs" / "cache" / "data").glob("[!.]*"))  # training couldn't use it


def test_a_folder_that_is_not_there_is_told_in_one_sentence(tmp_path):
    with pytest.raises((UserError, SystemExit)):
        check(tmp_path, tmp_path / "nowhere")


def test_good_data_have_no_findings(tmp_path, capsys):
    for i in range(12):
        (tmp_path / "good").mkdir(exist_ok=True)
        noise(i).save(tmp_path / "good" / f"{i}.png")
    assert check(tmp_path, tmp_path / "good")["findings"] == []
    assert "nothing suspicious" in capsys.readouterr().out


@pytest.mark.slow
def test_names_that_are_not_utf_8_and_names_of_html_are_shown_as_text(tmp_path, capsys):
    root = tmp_path / "odd"
    root.mkdir()
    for i in range(8):
        noise(i).save(root / f"{i}.png")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes((root / "0.png").read_bytes())
    (root / "<b>\x1b[31m.png").write_bytes((root / "1.png").read_bytes())
    found = check(tmp_path, root)
    (copies,) = [finding["groups"] for finding in found["findings"] if finding["key"] == "exact_copies"]
    assert ["0.png", "caf\udce9.png"] in [sorted(group) for group in copies]
    page = (tmp_path / "runs" / "check" / "odd" / "check.html").read_text("utf-8")
    assert "<b>" not in page and "\x1b" not in capsys.readouterr().out
