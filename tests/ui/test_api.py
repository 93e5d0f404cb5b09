"""The page without a browser, through gradio's client."""

import concurrent.futures
import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def page(served: Any) -> Any:
    return client.Client(served.url, verbose=False)


def generate(page: Any, **fields: Any) -> list[Path]:
    """Generates; the files of the images, as the server sent them."""
    _, gallery, *_ = page.predict(**{"prompt": "a cat", "n": 1, "seed": 0} | fields, api_name="/generate")
    gallery = gallery["value"] if isinstance(gallery, dict) else gallery
    return [Path(one["image"]) for one in gallery]


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def file(path: Path | str) -> Any:
    return client.handle_file(str(path))


def _value(update: Any) -> Any:
    """The value in an update of a field."""
    return update.get("value", update) if isinstance(update, dict) else update


def refused(page: Any, **fields: Any) -> str:
    with pytest.raises(Exception) as error:
        generate(page, **fields)
    return str(error.value)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


def test_text_to_image_is_what_the_model_generates(page: Any, runs: Path) -> None:
    import ldm

    generated = generate(page, prompt="a dog", n=2, seed=5, steps=4, guidance=2, sampler="euler", labels=["fish"])
    expected = ldm.load(runs / "ldm" / "tiny")(
        "a dog", labels=["fish"], n=2, seed=5, steps=4, guidance=2, sampler="euler"
    )
    assert len(generated) == 2
    for path, shown_image in zip(generated, expected, strict=True):
        assert np.array_equal(pixels(path), np.asarray(shown_image))


def test_progress_is_shown_with_looks_at_the_unfinished(page: Any) -> None:
    job = page.submit(prompt="a cat", n=1, steps=30, api_name="/generate")
    job.result()
    steps = [out[0] for out in job.outputs()]
    assert any("Step 1 of 30" in text for text in steps)
    captions = [one["caption"] for out in job.outputs() for one in (_value(out[1]) or ()) if isinstance(one, dict)]
    assert "preview" in captions


def test_settings_come_back_from_an_image_and_generate_it_again(page: Any) -> None:
    (first,) = generate(
        page, prompt='a "cat", é 猫', negative="a dog", labels=["dog"], seed=77, steps=5, sampler="heun", eta=None
    )
    *updates, about = page.predict(file(first), api_name="/restore")
    assert about["prompt"] == 'a "cat", é 猫' and about["seed"] == 77
    endpoint = page.view_api(return_format="dict")["named_endpoints"]["/generate"]
    names = [one["parameter_name"] for one in endpoint["parameters"]]
    values = {name: _value(update) for name, update in zip(names, updates, strict=True)}
    left_alone = [name for name, value in values.items() if isinstance(value, dict) and "__type__" in value]
    (again,) = generate(page, **{name: value for name, value in values.items() if name not in left_alone})
    assert np.array_equal(pixels(first), pixels(again))


def test_image_to_image_keeps_the_image_at_strength_zero(page: Any, photo: Path) -> None:
    kept, changed = (generate(page, mode="image", image=file(photo), strength=s)[0] for s in (0.0, 1.0))
    near, far = (np.abs(pixels(p).astype(float) - pixels(photo)).mean() for p in (kept, changed))
    assert near < far


def test_images_are_turned_as_their_exif_says(page: Any, photo: Path, tmp_path: Path) -> None:
    exif, layer = Image.Exif(), np.zeros((16, 16, 4), np.uint8)
    exif[0x0112] = 6  # to be turned clockwise
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    layer[:8] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    generated: dict[Path, list[np.ndarray]] = {}
    for path in (photo, tmp_path / "turned.png"):
        editor = {"background": file(path), "layers": [file(tmp_path / "layer.png")], "composite": None}
        ways: list[dict[str, Any]] = [{"mode": "image", "image": file(path), "strength": 0.2}]
        ways += [{"mode": "inpaint", "editor": editor}]
        generated[path] = [pixels(generate(page, seed=3, steps=2, **way)[0]) for way in ways]
    upright, turned = generated.values()
    assert all(np.array_equal(a, b) for a, b in zip(upright, turned, strict=True))


def test_inpainting_changes_what_is_painted_over_and_nothing_else(page: Any, photo: Path, tmp_path: Path) -> None:
    shown = Image.open(photo).resize((384, 384), Image.Resampling.NEAREST)
    layer = np.zeros((384, 384, 4), np.uint8)
    layer[96:288, 96:288] = 255
    shown.save(tmp_path / "shown.png")
    Image.fromarray(layer).save(tmp_path / "layer.png")
    editor = {"background": file(tmp_path / "shown.png"), "layers": [file(tmp_path / "layer.png")], "composite": None}
    (made,) = generate(page, mode="inpaint", editor=editor)
    same = (pixels(made) == pixels(photo)).all(-1)
    hole = np.zeros((16, 16), bool)
    hole[4:12, 4:12] = True
    assert same[~hole].all()
    assert not same[hole].all()


def test_variations_differ_from_one_another(page: Any, photo: Path) -> None:
    one, two = generate(page, mode="variations", vary=file(photo), vary_strength=0.8, n=2)
    assert not np.array_equal(pixels(one), pixels(two))


def test_a_grid_of_steps_and_seeds(page: Any) -> None:
    options = {"x_name": "seed", "x_values": "0-2", "y_name": "steps", "y_values": "1, 3", "prompt": "a cat"}
    _, sheet = page.predict(**options, api_name="/xy")
    sheet = _value(sheet)
    width, height = Image.open(sheet["path"] if isinstance(sheet, dict) else sheet).size
    assert width > height > 150


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 2.5}, "steps=2.5 has to be a whole number"),
        ({"steps": 5000}, "between 1 and 1000"),
        ({"seed": 3.7}, "seed=3.7 has to be a whole number"),
        ({"seed": 2**53}, "below 2^53"),
        ({"seed": None}, "seed is empty"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": None}, "n is empty"),
        ({"width": 16.5, "height": 16}, "width=16.5"),
        ({"guidance": "much"}, "guidance=much"),
        ({"prompt": 5}, "prompt=5 has to be text"),
        ({"mode": ["text"]}, "no mode"),
        ({"steps": 10**400}, "steps=1000"),
        ({"labels": ["cat"] * 20, "n": 64}, "up to 1024 images"),
        ({"labels": "cat"}, "labels=cat"),
        ({"labels": ["cow"]}, "no class is called 'cow'"),
        ({"run": "nowhere"}, "no run 'nowhere'"),
        ({"run": "/etc"}, "no run '/etc'"),
        ({"run": "plain"}, "can't take text"),
        ({"width": 15, "height": 16}, "15"),
        ({"interval": "low"}, "two numbers"),
        ({"mode": "inpaint"}, "needs an initial image"),
        ({"mode": "image"}, "needs an initial image"),
        ({"sampler": "warp"}, "warp"),
        ({"checkpoint": "../../x.ckpt"}, "no checkpoint"),
        ({"seed": -4}, "seed"),
        ({"width": 100_000, "height": 100_000}, "too large for a model of 16x16"),
        ({"width": -16, "height": -16}, "make no image"),
    ],
)
def test_a_mistake_is_a_message_and_the_server_lives_on(page: Any, fields: dict[str, Any], words: str) -> None:
    assert words.lower() in refused(page, **fields).lower()
    assert generate(page)


def test_seed_minus_one_is_a_new_one_each_time(page: Any, served: Any) -> None:
    for _ in range(2):
        generate(page, seed=-1, steps=1)
    seeds = [json.loads(Image.open(path).text["ldm"])["seed"] for path in served.app.store.recent_images(2)]  # type: ignore[attr-defined]
    assert seeds[0] != seeds[1] and min(seeds) >= 0


def test_what_carries_no_settings_is_reported(page: Any, photo: Path) -> None:
    with pytest.raises(Exception, match="holds no settings"):
        page.predict(file(photo), api_name="/restore")


def test_ten_requests_of_three_clients_all_finish(served: Any) -> None:
    clients = [client.Client(served.url, verbose=False) for _ in range(3)]

    def one(i: int) -> np.ndarray:
        return pixels(generate(clients[i % 3], seed=i)[0])

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        images = list(pool.map(one, range(10)))
    assert len({shown_image.tobytes() for shown_image in images}) == 10
    assert np.array_equal(images[4], one(4)), "a queued image is the one generated alone"


def test_requests_that_run_or_wait_can_be_cancelled(page: Any, served: Any) -> None:
    job = page.submit(prompt="a cat", n=1, steps=1000, api_name="/generate")
    while not any("Step" in out[0] for out in job.outputs()):
        assert not job.done()
    waiting = page.submit(prompt="a cat", n=1, steps=1000, api_name="/generate")
    while not waiting.communicator.event_id:
        assert not waiting.done()
    before = set(served.app.store.recent_images())
    waiting.cancel(), job.cancel()
    assert generate(page, steps=2), "neither holds up the next one"
    assert len(set(served.app.store.recent_images()) - before) == 1


def test_a_file_that_is_no_image_is_reported_without_folders_and_only_where_it_is_read(
    page: Any, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    notes = file(tmp_path / "notes.png")
    editor = {"background": notes, "layers": [notes], "composite": None}
    for fields in ({"mode": "image", "image": notes}, {"mode": "inpaint", "editor": editor}, {"map": notes}):
        words = refused(page, **fields)
        assert "isn't an image of a known kind" in words and "/" not in words and "gradio" not in words
    assert generate(page, image=notes, vary=notes, editor=editor, control_0_image=notes)


def test_image_to_image_is_done_at_the_size_that_its_png_says(page: Any, served: Any, photo: Path) -> None:
    generate(page, mode="image", image=file(photo), width=32, height=16)
    made = Image.open(served.app.store.recent_images(1)[0])
    message = json.loads(made.text["ldm"])  # type: ignore[attr-defined]
    assert made.size == (message["width"], message["height"]) == (32, 16)
    assert "Size: 32x16" in made.text["parameters"]  # type: ignore[attr-defined]


def test_what_the_api_requests_isnt_a_visitors_form(page: Any, served: Any) -> None:
    generate(page, prompt="a fish", steps=2)
    assert not (served.app.store.folder / "settings.json").exists()


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"x_name": "steps", "x_values": "2, 0"}, "teps=0"),
        ({"x_name": "guidance", "x_values": "1, nan"}, "uidance=nan"),
        ({"x_name": "sampler", "x_values": "euler, warp"}, "warp"),
        ({"x_name": "run", "x_values": "tiny, plain"}, "can't take text"),
        ({"x_name": "checkpoint", "x_values": "finished, none"}, "no checkpoint 'none'"),
        ({"x_name": "strength", "x_values": "0.2, 0.8"}, "without an initial image"),
        ({"x_name": "seed", "x_values": "1, 1e30"}, "numbers"),
        ({"x_name": "seed", "x_values": "1-2", "labels": ["cat", "dog"]}, "one class"),
    ],
)
def test_a_bad_value_ends_a_grid_before_its_first_image(page: Any, served: Any, axes: dict, words: str) -> None:
    before = served.app.store.recent_images()
    fields = {"prompt": "a cat", "y_name": "seed" if axes["x_name"] != "seed" else "nothing", "y_values": "1-3", **axes}
    with pytest.raises(Exception, match=words):
        page.predict(**fields, api_name="/xy")
    assert served.app.store.recent_images() == before


def test_a_grid_names_the_words_that_it_leaves_out(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio

    warned: list[str] = []
    monkeypatch.setattr(gradio, "Warning", lambda text, **_: warned.append(text))
    fields = {"x_name": "seed", "x_values": "1-2", "y_name": "steps", "y_values": "1-2", "seed": 0}
    page.predict(**fields, prompt="a dog " * 30 + "last", api_name="/xy")
    (remark,) = warned
    assert "the model reads only 24; this part is left out: " in remark and remark.endswith("a dog last")


def test_a_grids_png_has_its_axes(page: Any, served: Any) -> None:
    page.predict(prompt="a cat", x_name="seed", x_values="1, 2", y_name="nothing", y_values="", api_name="/xy")
    sheet = served.app.store.recent_images(1)[0]
    assert json.loads(Image.open(sheet).text["ldm"])["axes"] == {"seed": [1, 2]}  # type: ignore[attr-defined]
    page.predict(file(sheet), api_name="/restore")


# What others can reach -----------------------------------------------------------------------------------------------


def status(url: Any) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_outside_the_pages_own_folder_is_served(served: Any, page: Any, runs: Path) -> None:
    base = served.url.rstrip("/") + "/gradio_api/file="
    assert generate(page)
    inside = next(served.app.served_files.path.rglob("*.png"))
    assert status(f"{base}{inside}") == 200
    model = runs / "ldm" / "tiny" / "model"
    for path in ("/etc/passwd", Path(__file__), model / "model.safetensors", model / "config.json", "pyproject.toml"):
        assert status(f"{base}{path}") in (403, 404), path
    for way in (
        f"{served.app.served_files.path}/../../etc/passwd",
        f"{served.app.served_files.path}/%2e%2e/%2e%2e/etc/passwd",
    ):
        assert status(f"{base}{way}") in (403, 404), way


def test_only_this_machines_own_names_are_answered(served: Any) -> None:
    def asked_as(host: str) -> int:
        return status(urllib.request.Request(served.url, headers={"Host": host}))

    port = served.page.server_port
    assert [asked_as(host) for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")] == [200] * 3
    assert asked_as(f"attacker.example:{port}") == 400


def called(page: Any, name: str, data: list[Any]) -> str:
    """What the server says to a call without gradio's client, which would upload the files."""
    address = f"{page.src.rstrip('/')}/gradio_api/call/{name}"
    request = urllib.request.Request(address, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request, timeout=20))["event_id"]
    with urllib.request.urlopen(f"{address}/{event}", timeout=20) as answer:
        return answer.read().decode()


def failure(message: str) -> str:
    """The sentence that a call ended with."""
    event, _, data = message.strip().rpartition("data: ")
    assert event.strip().endswith("event: error"), message
    return json.loads(data)["error"]


ENDPOINTS = {
    "start_run": ["vae", "odd", "data=digits", False],
    "stop_run": ["ldm/tiny"],
    "resume_run": ["ldm/gone"],
    "run_state": ["ldm/tiny"],
    "set_alerts": [1, 1, "", ""],
    "restore": [None],
}
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
WRONG = {  # of each value of each endpoint, what isn't one
    "start_run": [
        [None, 3, "x" * 10**5, "..", {"a": 1}, FILE],
        [None, 3, True, "x" * 300, "猫" * 100, "", " ", "..", "../../etc", "a\0b", "a\nb", {"a": 1}, [1], FILE],
        [3, True, "..", "a\0b", "x=1\ny", {"a": 1}, FILE],
        [3, "..", "true", {"a": 1}, [1], FILE],
    ],
    "stop_run": [[None, 3, True, "x" * 10**5, "", "..", "../../etc", "a\0b", {"a": 1}, [1], FILE]],
    "resume_run": [[None, 3, True, "x" * 10**5, "", "..", "../../etc", "a\0b", {"a": 1}, [1], FILE]],
    "run_state": [[None, 3, True, "x" * 10**5, "", "..", "../../etc", "a\0b", {"a": 1}, [1], FILE]],
    "set_alerts": [
        [-1, True, "x", {"a": 1}, [1], FILE],
        [-1, True, "x", {"a": 1}, [1], FILE],
        [3, True, "x" * 10**5, {"a": 1}, [1], FILE],
        [3, True, "x" * 10**5, {"a": 1}, [1], FILE],
    ],
    "restore": [[3, True, "/etc/passwd", "", "a\0b", {"a": 1}, {"path": "a\0b"}, [1], [FILE], FILE]],
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_each_endpoint_says_what_is_wrong_with_what_it_is_sent(
    page: Any, served: Any, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given, spawned = ENDPOINTS[name], []
    monkeypatch.setattr(served.app.launcher, "_spawn", lambda *words: spawned.append(words))
    tries = [[*given[:i], bad, *given[i + 1 :]] for i, wrong in enumerate(WRONG[name]) for bad in wrong]
    tries += [[], [*given, 1]]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # an answer is mostly waited for
        answers = list(pool.map(lambda data: failure(called(page, name, data)), tries))
    for data, message in zip(tries, answers, strict=True):
        assert message and not message[0].islower() and len(message) < 700, data
        assert (
            "Error" not in message and "terminal" not in message and str(served.app.served_files.path) not in message
        ), (
            data,
            message,
        )
    assert spawned == [] and "Traceback" not in capfd.readouterr().err


def joined(page: Any, function: int, data: list[Any], event: Any = None) -> dict[str, Any]:
    """How a call of a function by its number ends, as the page's own script makes them."""
    address, session = f"{page.src.rstrip('/')}/gradio_api/queue", uuid.uuid4().hex
    body = {"fn_index": function, "session_hash": session, "data": data, "event_data": event}
    request = urllib.request.Request(f"{address}/join", json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=20).close()
    with urllib.request.urlopen(f"{address}/data?session_hash={session}", timeout=20) as lines:
        for line in lines:
            said = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if said.get("msg") == "process_completed":
                return said
    raise AssertionError("the stream ended without an answer")


ODD = [None, -1, 1e308, 10**30, "x", [[1]], {"path": "/etc/passwd"}, {"value": FILE, "selected_index": "a"}]
EVENTS = [None, [1], {"index": "a"}, {"index": -7, "value": 1}]


def private(served: Any) -> list[dict[str, Any]]:
    """The page's own functions, which no name of the API leads to."""
    return [one for one in served.page.config["dependencies"] if one["api_visibility"] != "public"]


@pytest.mark.parametrize("name", ["pick", "reuse_seed", "js_fn"])
def test_the_pages_own_functions_take_what_no_page_sends(
    page: Any, served: Any, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """`js_fn` is the browser's alone."""
    (one,) = [one for one in private(served) if one["api_name"] == name]
    tries = [*((value, None) for value in ODD), *((None, event) for event in EVENTS)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda given: joined(page, one["id"], [given[0]] * len(one["inputs"]), given[1]), tries))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_all_of_the_pages_own_functions_take_what_no_page_sends(
    page: Any, served: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for one in private(served):
        for value in ODD:
            joined(page, one["id"], [value] * len(one["inputs"]))
        assert "Traceback" not in capfd.readouterr().err, one["api_name"]


def test_a_request_of_very_many_values_is_refused(page: Any, served: Any) -> None:
    """gradio keeps them for each visitor, of whom there can be as many as a program makes up."""
    for value in ([[]] * 50_001, {str(i): 0 for i in range(50_001)}, [[[0] * 30_000], [0] * 30_000]):
        assert "more than 50,000 values" in failure(called(page, "run_state", [value]))
    assert served.page.app.state_holder.capacity == 1000


def test_what_is_clicked_is_one_of_the_files(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from ldm.ui.page.widgets import selected_file

    for index in (None, "a", -1, 2, True, 1e9, [0]):
        assert selected_file(SimpleNamespace(selected_index=index), ["a"]) == "a"  # type: ignore[arg-type]
    assert selected_file(SimpleNamespace(selected_index=1), ["a", "b"]) == "b"  # type: ignore[arg-type]


def test_images_of_a_gallery_are_not_decoded_to_be_sent_on(served: Any) -> None:
    """Else a request of a megabyte could name one large upload thousands of times."""
    galleries = [one for one in served.page.blocks.values() if type(one).__name__ == "Gallery"]
    asked = {id(field) for function in served.page.fns.values() for field in function.inputs}
    used = [gallery for gallery in galleries if id(gallery) in asked]
    assert used and all(gallery.type == "filepath" for gallery in used)


def test_no_file_of_the_server_can_be_passed_off_as_an_upload(page: Any, served: Any, photo: Path) -> None:
    foreign = {"path": str(photo), "meta": {"_type": "gradio.FileData"}, "orig_name": "photo.png"}
    message = failure(called(page, "restore", [foreign]))
    assert "has to be uploaded" in message and str(photo.parent) not in message
    endpoint = page.view_api(return_format="dict")["named_endpoints"]["/generate"]["parameters"]
    values = {one["parameter_name"]: one["parameter_default"] for one in endpoint} | {"mode": "image"}
    before = served.app.store.recent_images()
    for file in (foreign, {**foreign, "meta": {}}, str(photo), {**foreign, "path": "data:image/png;base64,AAAA"}):
        message = failure(called(page, "generate", list((values | {"image": file}).values())))
        assert ("has to be" in message and "uploaded" in message) or "'Initial image' can't have" in message
        assert str(photo.parent) not in message or file == str(photo)
    assert served.app.store.recent_images() == before


def test_half_letters_are_replaced_and_a_folder_is_no_file(page: Any, served: Any) -> None:
    assert "\ufffd" in failure(called(page, "run_state", ["ldm/\ud800"]))
    endpoint = page.view_api(return_format="dict")["named_endpoints"]["/generate"]["parameters"]
    values = {one["parameter_name"]: one["parameter_default"] for one in endpoint}
    message = called(page, "generate", list((values | {"prompt": "a \ud800 cat", "n": 1}).values()))
    assert "event: complete" in message and "a \\ufffd cat" in message
    folder = {"path": str(served.app.served_files.path / "shown"), "meta": {"_type": "gradio.FileData"}}
    Path(folder["path"]).mkdir(exist_ok=True)
    assert "folder" in failure(called(page, "restore", [folder]))
    assert not [file for files in served.page.temp_file_sets for file in files if Path(file).is_dir()]


def test_it_listens_on_this_machine_alone(served: Any) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    port = served.page.server_port
    table = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    listening = [row[1] for row in table if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port]
    assert listening == [f"0100007F:{port:04X}"]
