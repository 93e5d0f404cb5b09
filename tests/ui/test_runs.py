"""Runs as the page sees them: read, watched, started, stopped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.common.errors import UserError
from ldm.training.runs import lock
from ldm.ui.runs import run_state as runs
from ldm.ui.runs.alerts import Alerter, parse_rules
from ldm.ui.runs.launch import Launcher, option_words, script_command, words_of_config
from ldm.ui.runs.recipes import RECIPES, Recipe
from ldm.ui.runs.watch import Watcher, read_record, steps_per_s


def make_run(
    root: Path, key: str = "ldm/emoji", rows: str = "step,train/loss,val/loss\n9,2.5,\n19,nan,\n20,,1.5\n"
) -> Path:
    path = root / key
    (path / "samples").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 40}, "data": {"class": "Digits"}}))
    (path / "metrics.csv").write_text(rows)
    return path


@pytest.fixture
def process() -> Iterator[int]:
    """A live process, which has reported that it runs: until then it may have no memory of its own."""
    program = "import time; print('here', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()


def hold(path: Path, pid: int) -> None:
    """The lock of a run in process `pid`."""
    identity = lock._identity() | {"pid": pid, "started": lock._process_start(pid)}
    (path / lock.NAME).write_text(json.dumps(identity))


def test_how_a_run_stands(tmp_path: Path, process: int) -> None:
    path = make_run(tmp_path)
    assert runs.run_keys(tmp_path) == ["ldm/emoji"]
    assert runs.read_state(tmp_path, "ldm/emoji").status == "stopped"
    assert runs.read_state(tmp_path, "ldm/emoji", exit_code=2).status == "failed"
    hold(path, process)
    state = runs.read_state(tmp_path, "ldm/emoji")
    assert (state.status, state.pid, state.step, state.steps) == ("running", process, 19, 40)
    (path / lock.NAME).unlink()
    (path / "DONE").touch()
    assert runs.read_state(tmp_path, "ldm/emoji", exit_code=0).status == "finished"


def test_what_it_printed_is_newer_than_its_metrics(tmp_path: Path, process: int) -> None:
    path, log = make_run(tmp_path), tmp_path / "log"
    hold(path, process)
    log.write_text("step 35/40  loss 0.2500  120 samples/s\n")
    state = runs.read_state(tmp_path, "ldm/emoji", log)
    assert (state.step, state.loss, state.samples_per_s) == (35, 0.25, 120)


def test_curves_are_thinned_to_their_ends(tmp_path: Path) -> None:
    rows = "step,train/loss\n" + "".join(f"{i},{i / 10}\n" for i in range(5000))
    curve = runs.curves(make_run(tmp_path, rows=rows))["train/loss"]
    assert len(curve) <= runs.POINTS and curve[-1] == (4999, 499.9) and curve == sorted(curve)


def test_a_torn_metrics_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = make_run(tmp_path, rows="step,train/loss\n9,1.0\nx,\n19")
    assert runs.curves(path) == {"train/loss": [(9, 1.0)]}


def test_samples_and_report(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    for step in (20, 3):
        (path / "samples" / f"step-{step:08d}.png").touch()
    (path / "samples" / "sample-001.png").touch()
    (path / "evaluation").mkdir()
    (path / "evaluation" / "evaluation.json").write_text('{"validation loss": 0.5}')
    (path / "evaluation" / "samples.png").touch()
    assert [step for step, _ in runs.sample_grids(path)] == [3, 20]
    figures, images = runs.evaluation(path)
    assert figures == {"validation loss": 0.5} and [p.name for p in images] == ["samples.png"]


def test_links_out_of_a_run_and_pipes_in_it_are_not_read(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (path / "evaluation").mkdir()
    (tmp_path / "secret.png").write_text("secret")
    for name in ("samples/step-00000001.png", "evaluation/x.png"):
        (path / name).symlink_to(tmp_path / "secret.png")
    for name in ("metrics.csv", "config.yaml"):
        (path / name).unlink()
        os.mkfifo(path / name)
    os.mkfifo(path / "evaluation" / "x.json")
    assert runs.sample_grids(path) == [] and runs.evaluation(path) == ({}, [])
    assert runs.curves(path) == {} and runs.config_of(path) == {}
    (tmp_path / "other").symlink_to(make_run(tmp_path, "elsewhere/run"))
    (tmp_path / "other" / "samples" / "step-00000001.png").touch()
    assert len(runs.sample_grids(tmp_path / "other")) == 1, "a run may itself lie elsewhere"


@pytest.mark.parametrize("key", ["ldm/none", "../etc", "/etc", "ldm/../../x", ""])
def test_nothing_but_runs_can_be_named(tmp_path: Path, key: str) -> None:
    make_run(tmp_path)
    with pytest.raises(UserError, match="no run"):
        runs.run_folder(tmp_path, key)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def watcher(root: Path, clock: Any = time.time) -> Watcher:
    return Watcher(root, Launcher(root, root / "app"), Alerter(), clock=clock)


def test_the_record_of_a_run_is_kept(tmp_path: Path, process: int) -> None:
    path, clock = make_run(tmp_path), Clock()
    watch = watcher(tmp_path, clock)
    hold(path, process)
    for step in (10, 10, 30):
        (path / "metrics.csv").write_text(f"step,train/loss\n{step},0.5\n")
        watch.look()
        clock.now += 5
    (path / lock.NAME).unlink()
    watch.look()
    rows = read_record(watcher(tmp_path).record("ldm/emoji"))
    assert [row["step"] for row in rows] == [10, 10, 30], "as long as it ran"
    assert rows[0]["memory_mb"] > 0
    assert steps_per_s(rows) == [(pytest.approx(10 / 60), pytest.approx(2.0))]


def test_alerts_of_a_running_run(tmp_path: Path, process: int) -> None:
    path, clock = make_run(tmp_path), Clock()
    watch = watcher(tmp_path, clock)
    watch.rules = parse_rules(5, 0, "val/loss > 1", "")
    assert watch.look() == [], "it isn't running"
    hold(path, process)
    assert [alert.kind for alert in watch.look()] == ["nan", "threshold"]
    clock.now += 301
    assert [alert.kind for alert in watch.look()] == ["stall"]
    assert watch.look() == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.csv", "step,train/loss\n--5,1\n\u00b2,1\n" + "9" * 5000 + ",1\n19,1\n"),
        ("config.yaml", "trainer: 5"),
        ("config.yaml", "[" * 5000),
        ("evaluation/x.json", "[" * 100_000),
        (lock.NAME, "[" * 100_000),
        ("model/config.json", "[" * 100_000),
    ],
)
def test_a_damaged_run_hides_nothing_of_the_others(tmp_path: Path, process: int, file: str, text: str) -> None:
    from ldm.ui.generating.models import Models

    damaged, watch = make_run(tmp_path, "ldm/damaged", "step,train/loss\n19,1\n"), watcher(tmp_path)
    (damaged / file).parent.mkdir(exist_ok=True)
    (damaged / file).write_text(text, "utf-8")
    hold(make_run(tmp_path), process)
    assert [(alert.run, alert.kind) for alert in watch.look() if alert.kind != "disk"] == [("ldm/emoji", "nan")]
    assert watch.state("ldm/damaged").step == 19
    assert runs.evaluation(damaged) == ({}, []) and Models(tmp_path).names() == []


def test_a_run_that_cannot_be_read_hides_no_alerts_of_others(
    tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.ui.runs import watch as watching

    hold(make_run(tmp_path), process), make_run(tmp_path, "ldm/gone")
    whole, watch = watching.read_state, watcher(tmp_path)

    def read(root: Path, key: str, *args: Any, **options: Any) -> Any:
        if key == "ldm/gone":
            raise FileNotFoundError(key)
        return whole(root, key, *args, **options)

    monkeypatch.setattr(watching, "read_state", read)
    assert [alert.run for alert in watch.look() if alert.kind != "disk"] == ["ldm/emoji"]


# Starting and stopping -----------------------------------------------------------------------------------------------


def test_options_are_words_of_a_command_line() -> None:
    assert option_words("data=folder 'data.root=my photos' trainer.max_steps=5") == [
        "data=folder",
        "data.root=my photos",
        "trainer.max_steps=5",
    ]


@pytest.mark.parametrize("options", ["-m a=1,2", "data", "name=x", "runs_dir=/", "resume=true", "a='b", "; rm -rf x"])
def test_options_that_a_page_does_not_take_are_refused(options: str) -> None:
    with pytest.raises(UserError):
        option_words(options)


@pytest.mark.parametrize("name", ["", " ", "../x", "a/../../b", "null", "a-${oc.env:HOME}"])
def test_a_run_needs_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        Launcher(tmp_path, tmp_path / "app").start("vae", name, "")


def test_the_command_is_that_of_the_terminal() -> None:
    assert Path(script_command("train_vae")[-1]).name == "train_vae.py"


def test_an_evaluation_is_a_process_of_its_own_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print('given', *sys.argv[1:], flush=True); sys.stdin.read()"
    monkeypatch.setattr("ldm.ui.runs.launch.script_command", lambda script: [sys.executable, "-c", program, script])
    make_run(tmp_path, "vae/old")
    launcher = Launcher(tmp_path, tmp_path / "app")
    launcher.evaluate("vae/old")
    given = f"given evaluate run=old stage=vae runs_dir={tmp_path}"
    wait_for(lambda: given in runs.tail(launcher.log("vae/old"), 5), 30)
    assert launcher.started() == [] and launcher.exit_code("vae/old") is None, "it is no training"
    monkeypatch.setattr(launcher._evaluations["vae/old"], "poll", lambda: None)
    with pytest.raises(UserError, match="evaluated already"):
        launcher.evaluate("vae/old")
    with pytest.raises(UserError, match="no run vae/new"):
        launcher.evaluate("vae/new")


def test_runs_are_compared_by_curves_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from ldm.ui.page.tabs import runs as tab

    compared = {key: make_run(tmp_path, key) for key in ("ldm/a", "ldm/b")}
    curves = tab._loss_curves(compared)
    assert list(curves.itertuples(index=False, name=None)) == [
        (9, 2.5, "ldm/a train/loss"), (20, 1.5, "ldm/a val/loss"),
        (9, 2.5, "ldm/b train/loss"), (20, 1.5, "ldm/b val/loss"),
    ]  # fmt: skip
    assert set(tab._loss_curves({"ldm/a": compared["ldm/a"]})["curve"]) == {"train/loss", "val/loss"}
    table = tab._report_html({"ldm/a": {"fid": 3.14159}, "ldm/<b>": {"kid": 2}})
    assert "<th>fid</th><td>3.142</td><td>–</td>" in table and "<th>ldm/&lt;b&gt;</th>" in table
    assert "press Evaluate" in tab._report_html({"ldm/a": {}})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_a_recipe_is_options_that_its_command_takes(recipe: Recipe) -> None:
    from hydra import initialize_config_dir

    from ldm.config import overrides
    from ldm.config.checking import checked
    from ldm.config.compose import CONF, compose, group_names

    script = f"train_{recipe.stage}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _, words = overrides.prepare(option_words(recipe.filled("emoji")), group_names())
        composed = checked(script, *compose(script, words))
    assert composed["data"]["root"] == "FOLDER"
    if "finetune" in recipe.options:
        assert composed["base"] == "emoji" and composed["finetune"]["class"]


def test_a_recipe_takes_the_run_that_is_open_or_else_a_trained_one(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from ldm.ui.app import make_app
    from ldm.ui.page.tabs.runs import RunsTab

    tab, title = object.__new__(RunsTab), RECIPES[0].title
    tab.app = make_app(tmp_path)
    assert tab.fill_in(title, None)[1].startswith("finetune=lora base=RUN ")
    for name in ("cats", "dogs"):
        (model := make_run(tmp_path, f"ldm/{name}") / "model").mkdir()
        (model / "manifest.json").write_text("{}")
    bases = [tab.fill_in(title, key)[1].split()[1] for key in ("ldm/dogs", "vae/dogs", "ldm/gone", None)]
    first = f"base={tab.app.models.names()[0]}"
    assert bases == ["base=dogs", first, first, first]
    tab.app.close()


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


def test_a_mistake_in_the_options_is_what_the_run_says(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, tmp_path / "app")
    key = launcher.start("vae", "bad", "data=digitz")  # reported before torch is imported
    wait_for(lambda: launcher.exit_code(key) is not None)
    assert launcher.exit_code(key) == 2
    assert "Did you mean 'digits'" in runs.tail(launcher.log(key), 5)[-1]
    watch = Watcher(tmp_path, launcher, Alerter())
    assert watch.listed() == [key], "what ended before it had a folder is listed"
    state = watch.state(key)
    assert state.status == "failed" and "Did you mean 'digits'" in state.error
    assert [alert.run for alert in watch.look()] == [key]
    with pytest.raises(UserError, match="no run vae/other"):
        watch.state("vae/other")


def test_a_name_that_is_taken_and_a_run_that_is_finished_are_reported_before_anything_starts(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, tmp_path / "app")
    path = make_run(tmp_path, "vae/old")
    with pytest.raises(UserError, match="vae/old already"):
        launcher.start("vae", "old", "data=digits")
    (path / runs.DONE).touch()
    with pytest.raises(UserError, match="is finished"):
        launcher.resume("vae/old")
    assert launcher.started() == []


@pytest.mark.slow
def test_a_run_is_started_stopped_and_resumed(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, tmp_path / "app")
    watch = Watcher(tmp_path, launcher, Alerter())
    options = (
        "data=digits vae.channels=8 batch_size=16 trainer.max_steps=100000 checkpoint.every_n_steps=20 logger=none"
    )
    key = launcher.start("vae", "small", options)
    path = tmp_path / key
    wait_for(lambda: list((path / "checkpoints").glob("*.ckpt")))
    with pytest.raises(UserError, match="running already"):
        launcher.resume(key)
    watch.look()
    assert watch.state(key).status == "running" and read_record(watch.record(key))
    launcher.stop(key)
    wait_for(lambda: launcher.exit_code(key) is not None)
    assert watch.state(key).status == "stopped"
    with pytest.raises(UserError, match="isn't running"):
        launcher.stop(key)
    stopped = runs.read_state(tmp_path, key).path
    newest = max(file.name for file in (stopped / "checkpoints").glob("*.ckpt"))
    launcher.resume(key)
    wait_for(lambda: max((f.name for f in (path / "checkpoints").glob("*.ckpt")), default="") > newest)
    launcher.stop(key)
    wait_for(lambda: launcher.exit_code(key) is not None)
    assert any("resumed" in line for line in runs.tail(launcher.log(key), 30))


@pytest.mark.slow
def test_the_options_of_a_run_started_elsewhere_compose_its_config(tmp_path: Path) -> None:
    words = ["data=digits", "vae.channels=8", "batch_size=16", "trainer.max_steps=3", "logger=none", "name=a"]
    subprocess.run(
        [*script_command("train_vae"), *words, f"runs_dir={tmp_path}"],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    trained = runs.config_of(tmp_path / "vae" / "a")
    from hydra import initialize_config_dir

    from ldm.config import overrides
    from ldm.config.checking import checked
    from ldm.config.compose import CONF, compose, group_names

    with initialize_config_dir(str(CONF), version_base="1.3"):
        _, options = overrides.prepare(words_of_config(trained), group_names())
        composed = checked("train_vae", *compose("train_vae", options))
    for ours in ("name", "runs_dir", "cache_dir", "resume", "overwrite"):
        trained.pop(ours), composed.pop(ours)
    assert composed == trained
