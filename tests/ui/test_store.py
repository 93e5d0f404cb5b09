"""What the page keeps, who may reach it, and how drawing behaves without a page."""

import os
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.common.errors import UserError
from ldm.images import Preprocess, open_map
from ldm.ui.generating.form import canvas, drawn_mask
from ldm.ui.generating.generate import Painter, Progress, Waits, enlarged, plain
from ldm.ui.generating.models import Models
from ldm.ui.generating.png_settings import read
from ldm.ui.generating.settings import Settings
from ldm.ui.generating.store import Shown, Store, trim
from ldm.ui.server.serve import access, free_port
from tests.icc import display_p3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "app")


def test_settings_are_kept_and_damage_is_nothing(store: Store) -> None:
    store.remember("draw", {"prompt": "猫", "n": 3})
    store.remember("alerts", {"disk_gb": 2})
    assert Store(store.folder).recall("draw") == {"prompt": "猫", "n": 3}
    (store.folder / "settings.json").write_text("{")
    assert store.recall("draw") == {}


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / f"{i}" / "file"
        path.parent.mkdir()
        path.write_bytes(bytes(10))
        os.utime(path, (i, i))
    trim(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    trim(tmp_path, 25, files=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_pictures_are_numbered_and_newest_first(store: Store) -> None:
    paths = [store.save_picture(Image.new("L", (2, 2)), {"a": "b"}, seed) for seed in (7, 3)]
    assert [path.name for path in paths] == ["00001-7.png", "00002-3.png"]
    assert store.pictures() == paths[::-1]


@pytest.mark.parametrize("name", ["../settings", "x", "", "0123456789abcdef"])
def test_inputs_are_reached_by_their_hash_alone(store: Store, name: str) -> None:
    store.remember("draw", {})
    with pytest.raises(UserError, match="put it in again"):
        store.input(name)


def test_an_input_is_kept_once(store: Store) -> None:
    names = {store.keep_input(Image.new("RGB", (3, 3), colour)) for colour in ("red", "red", "blue")}
    assert len(names) == 2 == len(list((store.folder / "inputs").iterdir()))


def test_an_input_is_kept_upright_with_its_ids_and_its_colours(store: Store, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (8, 4), (40, 200, 60))
    stored.save(tmp_path / "a.png", exif=exif, icc_profile=display_p3())
    with Image.open(store.input(store.keep_input(Image.open(tmp_path / "a.png")))) as kept:
        assert kept.size == (4, 8)
        assert Preprocess(3, 8, 4).array(kept)[:, 0, 0].tolist() == [0, 204, 12]
    assert store.keep_input(stored.transpose(Image.Transpose.ROTATE_270)) != store.keep_input(
        Image.open(tmp_path / "a.png")
    )
    palette = Image.new("P", (4, 4), 5)
    palette.putpalette([i for i in range(255, -1, -1) for _ in range(3)])
    assert (open_map(store.input(store.keep_input(palette))) == 5).all()
    cyan = store.input(store.keep_input(Image.new("CMYK", (4, 4), (255, 0, 0, 0))))
    assert Image.open(cyan).getpixel((0, 0)) == (0, 255, 255)


def test_what_is_shown_is_a_copy_that_goes_with_the_server(tmp_path: Path) -> None:
    shown = Shown()
    (tmp_path / "a.txt").write_text("1")
    first = Path(shown.copy(tmp_path / "a.txt"))
    assert first == Path(shown.copy(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("22")
    assert Path(shown.copy(tmp_path / "a.txt")).read_text() == "22"
    shown.close()
    assert not first.exists()


# Access --------------------------------------------------------------------------------------------------------------


def test_this_machine_needs_no_password() -> None:
    assert access("127.0.0.1", None) is None
    assert access("localhost", "me:secret:x") == ("me", "secret:x")
    assert access("0.0.0.0", "me:secret") == ("me", "secret")


@pytest.mark.parametrize(
    ("host", "auth"),
    [
        ("0.0.0.0", None),
        ("192.168.1.2", ""),
        ("::", None),
        ("gpu.example", None),
        ("0.0.0.0", "me:"),
        ("127.0.0.1", "me"),
    ],
)
def test_others_are_let_in_only_with_one(host: str, auth: str | None) -> None:
    with pytest.raises(UserError, match="auth"):
        access(host, auth)


def test_a_port_in_use_is_said() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="another port="):
            free_port("127.0.0.1", taken.getsockname()[1])


# Drawing -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def painter(runs: Path, store: Store) -> Painter:
    return Painter(Models(runs, "tiny"), store, preview_seconds=0)


def finish(painter: Painter, settings: Settings) -> Any:
    *steps, pictures = painter.draw(settings)
    return steps, pictures


def test_every_picture_draws_itself_again_from_its_file(painter: Painter) -> None:
    settings = Settings("tiny", prompt="a dog", labels=("cat", "fish"), n=2, seed=10, steps=2, sampler="ddpm")
    _, pictures = finish(painter, settings)
    assert [(one.settings.seed, one.settings.labels) for one in pictures] == [
        (10, ("cat",)), (11, ("cat",)), (12, ("fish",)), (13, ("fish",))
    ]  # fmt: skip
    for one in pictures:
        _, (again,) = finish(painter, read(one.path)[0])
        pixels, others = (np.asarray(Image.open(path)).astype(int) for path in (one.path, again.path))
        assert np.abs(pixels - others).max() <= 1  # alone it may round otherwise than among others, by the processor


def test_steps_are_counted_over_all_batches(painter: Painter) -> None:
    painter.batch_size = 2
    steps, pictures = finish(painter, Settings("tiny", n=3, steps=4))
    assert [(event.step, event.steps) for event in steps] == [(i + 1, 8) for i in range(8)]
    assert len(pictures) == 3 and all(isinstance(e, Progress) and e.preview for e in steps)


def test_who_waits_is_told_has_its_turn_in_order_and_may_leave(painter: Painter) -> None:
    with painter._turns.turn():
        waiting = [painter.draw(Settings("plain", n=1, steps=1, seed=seed)) for seed in (1, 2, 3)]
        assert all(isinstance(next(one), Waits) for one in waiting)
        waiting[1].close()
    assert [list(one)[-1][0].settings.seed for one in (waiting[0], waiting[2])] == [1, 3]
    assert [path.name[6:] for path in painter.store.pictures()] == ["3.png", "1.png"]


def test_images_are_read_beside_generating_and_one_at_a_time(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [painter.store.keep_input(Image.new("RGB", (16, 16), colour)) for colour in ("red", "blue")]
    reads, go = queue.Queue[Path](), threading.Event()

    def slow(path: Path) -> Any:
        reads.put(path)
        assert go.wait(60)
        return Image.open(path).copy()

    monkeypatch.setattr("ldm.ui.generating.generate.turned", slow)
    first, second = (painter.draw(Settings("plain", n=1, steps=1, image=name, strength=0.5)) for name in names)
    others = threading.Thread(target=list, args=(first,))
    others.start()
    reads.get(timeout=60)
    assert isinstance(next(second), Waits)
    finish(painter, Settings("plain", n=1, steps=1))
    assert reads.empty(), "the other one's image is held in memory too"
    go.set()
    others.join(60)
    assert list(second)[-1] and len(painter.store.pictures()) == 3


def test_a_drawing_that_nobody_waits_for_ends_and_leaves_no_picture(painter: Painter) -> None:
    drawing = painter.draw(Settings("tiny", steps=1000, n=1))
    next(drawing)
    drawing.close()
    assert threading.active_count() < 20 and painter.store.pictures() == []
    assert finish(painter, Settings("tiny", n=1))[1], "the next one is drawn"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sampler": "euler", "eta": 0.5}, "eta"), ({"labels": ("cow",)}, "cow"), ({"interval": (5.0, 1.0)}, "interval")],
)
def test_what_cannot_be_drawn_is_known_before_it_is(painter: Painter, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        painter.check(Settings("tiny", steps=1000, **wrong))
    painter.check(Settings("tiny", steps=1000))
    assert painter.store.pictures() == []


def test_models_are_found_by_name_alone(runs: Path, tmp_path: Path) -> None:
    models = Models(runs)
    assert models.names() == ["plain", "tiny"]
    for name in (str(tmp_path), "../vae/x", str(runs / "ldm" / "tiny")):
        with pytest.raises(UserError, match="no run"):
            models.get(name)
    assert Models(runs, str(runs / "ldm" / "tiny")).get(str(runs / "ldm" / "tiny")), "as named at the start"


def test_models_that_were_written_anew_are_loaded_anew(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs, tmp_path / "runs")
    models = Models(tmp_path / "runs")
    first = models.get("tiny")
    assert models.get("tiny") is first
    os.utime(tmp_path / "runs" / "ldm" / "tiny" / "model" / "manifest.json", (1, 1))
    assert models.get("tiny") is not first


# The drawing field ---------------------------------------------------------------------------------------------------


def test_an_enlarged_picture_is_taken_as_it_was(runs: Path, tmp_path: Path) -> None:
    about = Models(runs).traits("tiny")
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    enlarged(small, 24).save(tmp_path / "big.png")
    assert np.array_equal(np.asarray(plain(Image.open(tmp_path / "big.png"), about)), np.asarray(small))
    other = tmp_path / "other.png"
    small.resize((384, 384), Image.Resampling.BICUBIC).save(other)
    bicubic = Image.open(other)
    assert plain(bicubic, about) is bicubic


def test_the_mask_is_what_was_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "image.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 8, 8))
    mask.save(tmp_path / "mask.png")
    field = canvas(tmp_path / "image.png", tmp_path / "mask.png")
    assert field is not None and field["background"].size == (384, 384)
    made = drawn_mask(field["layers"])
    assert made is not None
    assert np.array_equal(np.asarray(made.resize((16, 16), Image.Resampling.NEAREST)), np.asarray(mask))
    assert drawn_mask([]) is None
    assert drawn_mask([Image.new("RGBA", (4, 4), (0, 0, 0, 0))]) is None


def test_words_that_are_left_out_of_prompts_are_named(painter: Painter) -> None:
    settings = Settings("tiny", prompt="a dog " * 30 + "last", negative="a cat", n=1, steps=1)
    _, (long,) = finish(painter, settings)
    (remark,) = long.remarks
    assert "the model reads 24; left out is: " in remark and remark.endswith("a dog last")
    _, (short,) = finish(painter, Settings("tiny", prompt="a dog", n=1, steps=1))
    assert short.remarks == ()


# The fast preset -----------------------------------------------------------------------------------------------------


def test_fast_chooses_the_distilled_student_or_says_how_to_make_one() -> None:
    from types import SimpleNamespace

    from ldm.ui.page.generate_tab import DrawTab

    about = {"emoji": SimpleNamespace(distilled=False), "emoji-fast": SimpleNamespace(distilled=True)}
    models = SimpleNamespace(traits=about.__getitem__, names=lambda: list(about))
    tab = SimpleNamespace(app=SimpleNamespace(models=models), choose=lambda run: [run])
    for run in about:
        chosen, own = DrawTab.faster(tab, run)  # type: ignore[arg-type]
        assert chosen["value"] == own == "emoji-fast"
    del about["emoji-fast"]
    with pytest.raises(UserError, match="finetune=distill base=emoji"):
        DrawTab.faster(tab, "emoji")  # type: ignore[arg-type]
