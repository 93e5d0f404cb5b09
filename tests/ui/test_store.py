"""What the page keeps, who may reach it, and how generating behaves without a page."""

import os
import queue
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import LowRes
from ldm.diffusion import EDM
from ldm.images import Preprocess, open_map
from ldm.model.cascade import Cascade
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Identity
from ldm.ui.generating import form as forms
from ldm.ui.generating.image_generator import ImageGenerator, Progress, Waiting
from ldm.ui.generating.models import Models
from ldm.ui.generating.page_store import PageStore, ServedFiles, trim
from ldm.ui.generating.painting import canvas, enlarge_pixels, extended, painted_mask, undo_enlarging
from ldm.ui.generating.png_settings import read_settings, searchable
from ldm.ui.generating.settings import Settings
from ldm.ui.server.serve import check_port, credentials
from tests.icc import display_p3
from tests.ui.conftest import save_run


@pytest.fixture
def store(tmp_path: Path) -> PageStore:
    return PageStore(tmp_path / "app")


def test_settings_are_kept_and_damage_is_nothing(store: PageStore) -> None:
    store.remember("draw", {"prompt": "猫", "n": 3})
    store.remember("alerts", {"disk_gb": 2})
    assert PageStore(store.folder).recall("draw") == {"prompt": "猫", "n": 3}
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


def test_images_are_numbered_and_newest_first(store: PageStore) -> None:
    paths = [store.save_image(Image.new("L", (2, 2)), {"a": "b"}, seed) for seed in (7, 3)]
    assert [path.name for path in paths] == ["00001-7.png", "00002-3.png"]
    assert store.recent_images() == paths[::-1]


@pytest.mark.parametrize("name", ["../settings", "x", "", "0123456789abcdef"])
def test_inputs_are_reached_by_their_hash_alone(store: PageStore, name: str) -> None:
    store.remember("draw", {})
    with pytest.raises(UserError, match="upload it again"):
        store.input_path(name)


def test_an_input_is_kept_once(store: PageStore) -> None:
    names = {store.keep_input(Image.new("RGB", (3, 3), colour)) for colour in ("red", "red", "blue")}
    assert len(names) == 2 == len(list((store.folder / "inputs").iterdir()))


def test_an_input_is_kept_upright_with_its_ids_and_its_colours(store: PageStore, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (8, 4), (40, 200, 60))
    stored.save(tmp_path / "a.png", exif=exif, icc_profile=display_p3())
    with Image.open(store.input_path(store.keep_input(Image.open(tmp_path / "a.png")))) as kept:
        assert kept.size == (4, 8)
        assert Preprocess(3, 8, 4).array(kept)[:, 0, 0].tolist() == [0, 204, 12]
    assert store.keep_input(stored.transpose(Image.Transpose.ROTATE_270)) != store.keep_input(
        Image.open(tmp_path / "a.png")
    )
    palette = Image.new("P", (4, 4), 5)
    palette.putpalette([i for i in range(255, -1, -1) for _ in range(3)])
    assert (open_map(store.input_path(store.keep_input(palette))) == 5).all()
    cyan = store.input_path(store.keep_input(Image.new("CMYK", (4, 4), (255, 0, 0, 0))))
    assert Image.open(cyan).getpixel((0, 0)) == (0, 255, 255)


def test_what_is_shown_is_a_copy_that_ends_with_the_server(tmp_path: Path) -> None:
    shown = ServedFiles()
    (tmp_path / "a.txt").write_text("1")
    first = Path(shown.copy(tmp_path / "a.txt"))
    assert first == Path(shown.copy(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("22")
    assert Path(shown.copy(tmp_path / "a.txt")).read_text() == "22"
    shown.close()
    assert not first.exists()


# Access --------------------------------------------------------------------------------------------------------------


def test_this_machine_needs_no_password() -> None:
    assert credentials("127.0.0.1", None) is None
    assert credentials("localhost", "me:secret:x") == ("me", "secret:x")
    assert credentials("0.0.0.0", "me:secret") == ("me", "secret")


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
        credentials(host, auth)


def test_a_port_in_use_is_reported() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="another port="):
            check_port("127.0.0.1", taken.getsockname()[1])


# Drawing -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def generator(runs: Path, store: PageStore) -> ImageGenerator:
    return ImageGenerator(Models(runs, "tiny"), store, preview_seconds=0)


def finish(generator: ImageGenerator, settings: Settings) -> Any:
    *steps, results = generator.generate(settings)
    return steps, results


def test_every_image_is_generated_again_from_its_file(generator: ImageGenerator) -> None:
    settings = Settings("tiny", prompt="a dog", labels=("cat", "fish"), n=2, seed=10, steps=2, sampler="ddpm")
    _, results = finish(generator, settings)
    assert [(one.settings.seed, one.settings.labels) for one in results] == [
        (10, ("cat",)), (11, ("cat",)), (12, ("fish",)), (13, ("fish",))
    ]  # fmt: skip
    for one in results:
        _, (again,) = finish(generator, read_settings(one.path)[0])
        pixels, others = (np.asarray(Image.open(path)).astype(int) for path in (one.path, again.path))
        assert np.abs(pixels - others).max() <= 1  # alone it may round otherwise than among others, by the processor


def test_steps_are_counted_over_all_batches(generator: ImageGenerator) -> None:
    generator.batch_size = 2
    steps, results = finish(generator, Settings("tiny", n=3, steps=4))
    assert [(event.step, event.steps) for event in steps] == [(i + 1, 8) for i in range(8)]
    assert len(results) == 3 and all(isinstance(e, Progress) and e.preview for e in steps)


def test_a_waiting_request_is_reported_has_its_turn_in_order_and_may_leave(generator: ImageGenerator) -> None:
    with generator._turns.turn():
        waiting = [generator.generate(Settings("plain", n=1, steps=1, seed=seed)) for seed in (1, 2, 3)]
        assert all(isinstance(next(one), Waiting) for one in waiting)
        waiting[1].close()
    assert [list(one)[-1][0].settings.seed for one in (waiting[0], waiting[2])] == [1, 3]
    assert [path.name[6:] for path in generator.store.recent_images()] == ["3.png", "1.png"]


def test_images_are_read_beside_generating_and_one_at_a_time(
    generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [generator.store.keep_input(Image.new("RGB", (16, 16), colour)) for colour in ("red", "blue")]
    reads, go = queue.Queue[Path](), threading.Event()

    def slow(path: Path) -> Any:
        reads.put(path)
        assert go.wait(60)
        return Image.open(path).copy()

    monkeypatch.setattr("ldm.ui.generating.image_generator.open_unconverted", slow)
    first, second = (generator.generate(Settings("plain", n=1, steps=1, image=name, strength=0.5)) for name in names)
    others = threading.Thread(target=list, args=(first,))
    others.start()
    reads.get(timeout=60)
    assert isinstance(next(second), Waiting)
    finish(generator, Settings("plain", n=1, steps=1))
    assert reads.empty(), "the other one's image is held in memory too"
    go.set()
    others.join(60)
    assert list(second)[-1] and len(generator.store.recent_images()) == 3


def test_generating_that_nobody_waits_for_ends_and_leaves_no_image(generator: ImageGenerator) -> None:
    before = threading.active_count()  # other tests of this process may have left some
    drawing = generator.generate(Settings("tiny", steps=1000, n=1))
    next(drawing)
    drawing.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before and generator.store.recent_images() == []
    assert finish(generator, Settings("tiny", n=1))[1], "the next one is generated"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sampler": "euler", "eta": 0.5}, "eta"), ({"labels": ("cow",)}, "cow"), ({"interval": (5.0, 1.0)}, "interval")],
)
def test_what_cannot_be_generated_is_known_before_it_is(
    generator: ImageGenerator, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        generator.check(Settings("tiny", steps=1000, **wrong))
    generator.check(Settings("tiny", steps=1000))
    assert generator.store.recent_images() == []


def test_models_are_found_by_name_alone(runs: Path, tmp_path: Path) -> None:
    models = Models(runs)
    assert models.names() == ["plain", "tiny"]
    for name in (str(tmp_path), "../vae/x", str(runs / "ldm" / "tiny")):
        with pytest.raises(UserError, match="no run"):
            models.get(name)
    assert Models(runs, str(runs / "ldm" / "tiny")).get(str(runs / "ldm" / "tiny")), "as named at the start"


def test_models_that_were_written_again_are_loaded_again(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    models = Models(tmp_path / "runs")
    first = models.get("tiny")
    assert models.get("tiny") is first
    os.utime(tmp_path / "runs" / "ldm" / "tiny" / "model" / "manifest.json", (1, 1))
    assert models.get("tiny") is not first


# The drawing field ---------------------------------------------------------------------------------------------------


def test_an_enlarged_image_is_taken_as_it_was(tmp_path: Path) -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    enlarge_pixels(small, 24).save(tmp_path / "enlarged_preview.png")
    assert np.array_equal(
        np.asarray(undo_enlarging(Image.open(tmp_path / "enlarged_preview.png"), (16, 16))), np.asarray(small)
    )
    other = tmp_path / "other.png"
    small.resize((384, 384), Image.Resampling.BICUBIC).save(other)
    bicubic = Image.open(other)
    assert undo_enlarging(bicubic, (16, 16)) is bicubic


def test_the_mask_is_what_was_painted(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "image.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 8, 8))
    mask.save(tmp_path / "mask.png")
    field = canvas(tmp_path / "image.png", tmp_path / "mask.png")
    assert field is not None and field["background"].size == (384, 384)
    made = painted_mask(field["layers"])
    assert made is not None
    assert np.array_equal(np.asarray(made.resize((16, 16), Image.Resampling.NEAREST)), np.asarray(mask))
    assert painted_mask([]) is None
    assert painted_mask([Image.new("RGBA", (4, 4), (0, 0, 0, 0))]) is None


def test_layers_of_a_mask_are_few_and_read_one_at_a_time() -> None:
    """A request can name one large upload as thousands of layers."""
    held: list[weakref.ref[Image.Image]] = []
    read: list[str] = []

    def open_one(file: Any, what: str) -> Image.Image:
        assert sum(one() is not None for one in held) < 2, "more than the one before"
        image = Image.new("RGBA", (2, 2), "white")
        read.append(what)
        held.append(weakref.ref(image))
        return image

    assert forms._editor_images({"background": "x", "layers": ["y"] * forms.MAX_LAYERS}, open_one)[1].size == (2, 2)
    for layers in (["y"] * (forms.MAX_LAYERS + 1), "y" * 3, {"a": 1}):
        with pytest.raises(UserError, match="up to 8 layers"):
            forms._editor_images({"background": "x", "layers": layers}, open_one)
    assert read == ["mask"] * forms.MAX_LAYERS + ["initial image"]


def test_words_that_are_left_out_of_prompts_are_named(generator: ImageGenerator) -> None:
    settings = Settings("tiny", prompt="a dog " * 30 + "last", negative="a cat", n=1, steps=1)
    _, (long,) = finish(generator, settings)
    (remark,) = long.remarks
    assert "the model reads only 24; this part is left out: " in remark and remark.endswith("a dog last")
    _, (short,) = finish(generator, Settings("tiny", prompt="a dog", n=1, steps=1))
    assert short.remarks == ()


# The fast preset -----------------------------------------------------------------------------------------------------


def test_fast_chooses_the_student_that_was_distilled_from_the_run(runs: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from ldm.ui.page.tabs.generate import GenerateTab

    for name in ("plain", "quick"):
        shutil.copytree(runs / "ldm" / "plain", tmp_path / "ldm" / name)
    models = Models(tmp_path)
    tab = SimpleNamespace(app=SimpleNamespace(models=models), choose=lambda run: [run])
    with pytest.raises(UserError, match="finetune=distill base=plain"):
        GenerateTab.faster(tab, "plain")  # type: ignore[arg-type]
    (tmp_path / "ldm" / "quick" / "config.yaml").write_text("base: runs/ldm/plain\nfinetune: {class: DistillFinetune}")
    assert models.student("plain") == "quick" and models.student("quick") is None
    chosen, own = GenerateTab.faster(tab, "plain")  # type: ignore[arg-type]
    assert chosen["value"] == own == "quick"


# Masks, prompts and models beside the first ones --------------------------------------------------------------------


def test_an_extended_image_repeats_its_edges_under_a_mask() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8))
    mask = Image.new("L", (6, 4))
    mask.putpixel((1, 2), 255)
    wide, new = extended(image, mask, {"left": 2, "right": 0, "top": 1, "bottom": 0})
    assert wide.size == new.size == (8, 5)
    pixels, white = np.asarray(wide), np.asarray(new)
    assert np.array_equal(pixels[1:, 2:], np.asarray(image)) and np.array_equal(pixels[1:, 0], np.asarray(image)[:, 0])
    assert white[:, :2].all() and white[0].all() and white[3, 3] == 255 and white[1:, 2:].sum() == 255


def test_an_uploaded_mask_adds_to_the_painted_one() -> None:
    half, layer = Image.new("L", (2, 2)), Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.putpixel((0, 0), 200)
    layer.putpixel((3, 3), (255, 0, 0, 153))
    opened = {"ground": Image.new("RGB", (4, 4)), "layer": layer, "file": half, "black": Image.new("L", (2, 2))}
    editor = {"background": "ground", "layers": ["layer"]}
    _, mask = forms._editor_images(editor, lambda file, what: opened[file], "file")
    assert np.argwhere(np.asarray(mask)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 3]]
    with pytest.raises(UserError, match="upload a mask that has white"):
        forms._editor_images({"background": "ground"}, lambda file, what: opened[file], "black")


def test_each_line_of_a_prompt_may_be_a_request() -> None:
    settings = Settings("tiny", prompt="a cat\n\n a dog ", n=2, seed=4)
    assert forms.prompts_of({"per_line": False}, settings) == [settings]
    each = forms.prompts_of({"per_line": True}, settings)
    assert [(one.prompt, one.seed, one.n) for one in each] == [("a cat", 4, 2), ("a dog", 4, 2)]
    with pytest.raises(UserError, match="20 prompts are 1280 images"):
        forms.prompts_of({"per_line": True}, Settings("tiny", prompt="a\n" * 20, n=64))


def test_images_are_enlarged_by_a_run_that_was_trained_to(runs: Path, tmp_path: Path) -> None:
    for name in ("plain", "tiny"):
        shutil.copytree(runs / "ldm" / name, tmp_path / "ldm" / name)
    save_run(tmp_path, "larger", larger())
    models = Models(tmp_path)
    assert models.enlargers() == ["larger"]
    generator = ImageGenerator(models, PageStore(tmp_path / "app"))
    _, (one,) = finish(generator, Settings("plain", n=1, steps=2, seed=3, enlarge="larger"))
    expected = Cascade(models.get("plain"), models.get("larger")).generate(n=1, steps=2, seed=3)[0]
    with Image.open(one.path) as image:
        assert image.size == (32, 32) and np.array_equal(np.asarray(image), np.asarray(expected))
    assert read_settings(one.path)[0].enlarge == "larger"
    with pytest.raises(UserError, match="trained to enlarge"):
        finish(generator, Settings("plain", n=1, enlarge="tiny"))


def larger() -> LatentDiffusion:
    """A model with random weights that enlarges 16 x 16 to 32 x 32, on pixels."""
    torch.manual_seed(0)
    conditioner = ldm.Conditioner({"low": LowRes(3, size=[32, 32])})
    sizes = {"vector_dim": conditioner.vector_dim, "concat_channels": conditioner.concat_channels}
    network = ldm.UNet(3, channels=[8], heads=2, **sizes)
    denoiser = ldm.Denoiser(network, EDM())
    return LatentDiffusion(Identity(3), denoiser, conditioner, Preprocess(3, 32, 32), {"steps": 2})


# The images that were generated ---------------------------------------------------------------------------------------


def test_a_deleted_image_is_moved_out_of_the_list_and_nothing_else_can_be(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "app")
    first, second = (store.save_image(Image.new("RGB", (2, 2)), {}, seed) for seed in (1, 2))
    assert store.images_named([store.name_of(first), "../x", 3, "2026-01-01/00001-1.png"]) == [first]
    moved = store.delete(first)
    assert list(store.images()) == [second] and moved.is_file() and moved.is_relative_to(tmp_path / "app" / "deleted")
    (tmp_path / "mine.png").touch()
    for other in (first, tmp_path / "mine.png", tmp_path / "app" / "pictures" / ".." / ".." / "mine.png"):
        with pytest.raises(UserError, match="isn't stored"):
            store.delete(other)
    assert (tmp_path / "mine.png").is_file()


def test_a_deleted_image_stays_when_the_next_of_its_seed_is_deleted(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "app")
    kept = [store.delete(store.save_image(Image.new("RGB", (2, 2), (grey,) * 3), {}, seed=7)) for grey in (10, 20)]
    assert [Image.open(path).getpixel((0, 0))[0] for path in kept] == [10, 20]  # type: ignore[index]


def test_an_extended_image_is_no_larger_than_the_model_may_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ldm.ui.generating import painting
    from ldm.ui.page.sending import Sending

    app: Any = SimpleNamespace(models=SimpleNamespace(traits=lambda run: SimpleNamespace(width=16, height=16)))
    editor = {"background": Image.new("RGB", (16, 16)), "layers": []}
    sending = Sending(app, {}, None, None)  # type: ignore[arg-type]
    assert sending.extend("tiny", editor, None, None, 48, 0, 0, 48)[1:] == [64, 64]
    monkeypatch.setattr(painting, "extended", lambda *_: pytest.fail("it was made before its size was checked"))
    with pytest.raises(UserError, match="4112x16 is too large for a model of 16x16"):
        sending.extend("tiny", editor, None, None, 4096, 0, 0, 0)


def test_images_are_found_by_words_of_their_settings(generator: ImageGenerator) -> None:
    _, (cat, _) = finish(generator, Settings("tiny", prompt="a Cat", n=2, steps=1, sampler="heun"))
    assert "a cat" in searchable(cat.path) and "heun" in searchable(cat.path)
    assert searchable(Path("missing.png")) == ""
