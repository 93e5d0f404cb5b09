"""The tab of runs: the live state of one; starting, stopping, resuming."""

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.page.messages import show_errors
from ldm.ui.page.progress import bar
from ldm.ui.page.widgets import browser_form, quiet_event
from ldm.ui.runs import run_state as runs
from ldm.ui.runs.launch import NAME_BYTES
from ldm.ui.runs.recipes import RECIPES, recipe
from ldm.ui.runs.watch import read_record, steps_per_s

LIVE_SECONDS = 3.0
_AS_SENT: dict[str, Any] = {"preprocess": False}  # the functions check the values and say what is wrong


class RunsTab:
    """Builds the tab inside the current `gr.Blocks`."""

    def __init__(self, app: App):
        self.app = app
        self.timer = gr.Timer(LIVE_SECONDS, active=False)
        self._layout()
        self._events()

    def _layout(self) -> None:
        keys = runs.run_keys(self.app.runs_dir)
        with gr.Row():
            self.run = gr.Dropdown(
                keys, value=next(iter(keys), None), label="Run", scale=3, elem_id="runs", allow_custom_value=True
            )
            self.others = gr.Dropdown(
                keys, value=[], label="Compare with", scale=3, multiselect=True, elem_id="compare", max_choices=8
            )
        with gr.Row():
            self.look = gr.Button("↻ Refresh", size="sm", scale=0, min_width=90)
            self.evaluate = gr.Button("Evaluate", size="sm", scale=0, min_width=90, elem_id="evaluate")
            self.resume = gr.Button("Resume", size="sm", scale=0, min_width=90)
            self.stop = gr.Button("Stop", size="sm", variant="stop", scale=0, min_width=90, elem_id="stop-run")
        self.status = gr.HTML(bar("Choose a run"), elem_id="run-status")
        with gr.Row():
            self.loss = _plot("Loss", "step", "loss", color="curve")
            self.speed = _plot("Speed, steps per second", "minutes", "steps per s")
            self.memory = _plot("Memory, MB", "minutes", "MB", color="of")
        self.grids = gr.Gallery(
            label="Samples during training",
            columns=6,
            fit_columns=False,
            object_fit="contain",
            format="png",
            height=260,
            elem_id="grids",
        )
        with gr.Accordion("Evaluation", open=True), gr.Row():
            self.report = gr.HTML("")
            self.report_images = gr.Gallery(
                label="Images of the report", columns=3, object_fit="contain", format="png", height=300
            )
        with gr.Accordion("Log", open=False):
            self.log = gr.Textbox(show_label=False, lines=14, max_lines=14, interactive=False, elem_classes="log")
        self._form()

    def _form(self) -> None:
        self.kept = browser_form("start")
        with gr.Accordion("Start a run: train a LoRA or a new model", open=False, elem_id="start-box"):
            self.recipe = gr.Dropdown(
                [known.title for known in RECIPES], value=None, label="What to train", elem_id="recipe",
                info="Fills in the options below. Replace the words in capitals, such as FOLDER by the path of a "
                "folder or .zip of images on this machine.",
            )  # fmt: skip
            with gr.Row():
                stages = [("1: autoencoder", "vae"), ("2: diffusion", "ldm")]
                self.stage = gr.Radio(stages, value="ldm", label="Stage")
                self.name = gr.Textbox("", label="Name", placeholder="name of its folder")
                self.overwrite = gr.Checkbox(False, label="Overwrite existing run")
            self.options = gr.Textbox(
                "", label="Options, as on the command line", lines=2,
                placeholder="data=emoji trainer.max_time=00:00:08:00",
            )  # fmt: skip
            self.go = gr.Button("Start", variant="primary", elem_id="start-run")
        self.form = [self.stage, self.name, self.options]

    def _events(self) -> None:
        view = [
            self.status,
            self.loss,
            self.speed,
            self.memory,
            self.grids,
            self.report,
            self.report_images,
            self.log,
        ]
        quietly = quiet_event(self.status)
        shown = gr.State("")
        show = show_errors(self.show)
        gr.on(
            [self.run.change, self.others.change, self.timer.tick], show, [self.run, self.others, shown],
            [*view, shown], **quietly,
        )  # fmt: skip
        self.look.click(show_errors(self.found), None, [self.run, self.others], **quietly)
        self.evaluate.click(show_errors(self.evaluate_run), self.run, self.status, **quietly)
        self.recipe.input(
            show_errors(self.fill_in), [self.recipe, self.run], [self.stage, self.options], queue=False, **quietly
        )
        started = [self.run, self.status]
        self.go.click(lambda *form: form, self.form, self.kept, queue=False, **quietly)
        form, as_sent = [self.stage, self.name, self.options, self.overwrite], _AS_SENT
        self.go.click(show_errors(self.start), form, started, api_name="start_run", **as_sent)
        self.stop.click(show_errors(self.stop_run), self.run, self.status, api_name="stop_run", **as_sent)
        self.resume.click(show_errors(self.resume_run), self.run, self.status, api_name="resume_run", **as_sent)
        state = gr.JSON(visible=False)
        gr.Button(visible=False).click(show_errors(self.describe), self.run, state, api_name="run_state", **as_sent)

    # What the buttons do ---------------------------------------------------------------------------------------------

    def show(self, key: str | None, others: list[str], shown: str) -> list[Any]:
        """State, curves, samples, report and log of a run, with curves and report of the `others` that it is compared
        with. Only the state is new if nothing changed since `shown`."""
        if not key or key not in self.app.watcher.listed():
            return [bar(f"There is no run {key}" if key else "Choose a run"), *[gr.skip()] * 7, ""]
        run = self.app.watcher.state(key)
        record, log = self.app.watcher.record(key), self.app.launcher.log(key)
        compared = {key: run.path} | {other: self.app.runs_dir / other for other in self._known(others)}
        watched = [path / part for path in compared.values() for part in ("metrics.csv", "evaluation")]
        now = "|".join([*compared, *map(_stamp, (*watched, record, log, run.path / "samples"))])
        status = _headline(run)
        if now == shown:
            return [status, *[gr.skip()] * 7, shown]
        speed, memory = _usage_curves(read_record(record))
        grids = [
            (self.app.served_files.copy(path), f"step {step}") for step, path in reversed(runs.sample_grids(run.path))
        ]
        figures, (_, images) = {k: runs.evaluation(p)[0] for k, p in compared.items()}, runs.evaluation(run.path)
        evaluated = [self.app.served_files.copy(path) for path in images]
        printed = "\n".join(runs.tail(log, 200)) or "No log: the run wasn't started from this page."
        plots = [gr.update(value=frame, visible=len(frame) > 0) for frame in (_loss_curves(compared), speed, memory)]
        gallery = gr.update(value=evaluated, visible=bool(evaluated))
        return [status, *plots, grids, _report_html(figures), gallery, printed, now]

    def _known(self, keys: Any) -> list[str]:
        listed = self.app.watcher.listed()
        return [key for key in keys if key in listed] if isinstance(keys, list) else []

    def describe(self, key: str) -> dict[str, Any]:
        """The state of a run, as plain data."""
        _check_key(key)
        run = self.app.watcher.state(key)
        return {"status": run.status, "step": run.step, "loss": run.loss, "said": run.error}

    def recall(self, kept: Any) -> list[Any]:
        """The form of a new run as the browser kept it."""
        return kept if isinstance(kept, list) and len(kept) == len(self.form) else [gr.skip()] * len(self.form)

    def found(self) -> list[Any]:
        """The runs that there are now, for both lists."""
        return [gr.update(choices=self.app.watcher.listed())] * 2

    def evaluate_run(self, key: str) -> str:
        """Starts the evaluation of a run."""
        _check_key(key)
        self.app.launcher.evaluate(key)
        return bar(f"{key} is being evaluated: its figures will be shown below")

    def fill_in(self, title: str | None, key: str | None) -> list[Any]:
        """Stage and options of a recipe, for the run that is open as the base if it can be one, else for another."""
        names, (stage, _, name) = self.app.models.names(), (key or "").partition("/")
        base = name if stage == "ldm" and name in names else next(iter(names), None)
        known = recipe(title or "")
        return [known.stage, known.filled(base)] if known else [gr.skip(), gr.skip()]

    def start(self, stage: str, name: str, options: str, overwrite: bool) -> tuple[Any, str]:
        """Starts a run in a process of its own."""
        if not isinstance(stage, str) or stage not in runs.STAGES:
            raise UserError(f"there is no stage {annotations.as_typed(stage)}: take vae or ldm.")
        overwrite, options = overwrite or False, options or ""
        for value, kind, what in ((name, str, "name"), (options, str, "options"), (overwrite, bool, "overwrite")):
            annotations.check_value(value, kind, what)
        key = self.app.launcher.start(stage, name.strip(), options, overwrite)
        return gr.update(choices=self.app.watcher.listed(), value=key), bar(f"{key} is starting")

    def stop_run(self, key: str) -> str:
        """Asks a run to save and end."""
        _check_key(key)
        self.app.launcher.stop(key)
        return bar(f"{key} is saving and stopping", 0, "stopped")

    def resume_run(self, key: str) -> str:
        """Resumes a run."""
        _check_key(key)
        self.app.launcher.resume(key)
        return bar(f"{key} is resuming")


def _check_key(key: Any) -> None:
    """Raises UserError for what can't be the key of a run."""
    if not isinstance(key, str) or not key or len(key) > 2 * NAME_BYTES:
        raise UserError(f"there is no run {annotations.as_typed(key)}: give STAGE/NAME, such as ldm/emoji.")


def _headline(run: runs.RunState) -> str:
    """The state of a run as a progress bar."""
    share = run.step / run.steps if run.step and run.steps else 0.0
    if run.status == "finished":
        share = 1.0
    parts = [run.key, run.status]
    if run.step is not None:
        parts.append(f"step {run.step} of {run.steps}" if run.steps else f"step {run.step}")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4g}")
    if run.samples_per_s:
        parts.append(f"{run.samples_per_s:.0f} samples/s")
    if run.error:
        parts.append(run.error)
    state = {"finished": "done", "failed": "stopped", "stopped": "stopped"}.get(run.status, "")
    return bar(" · ".join(parts), share, state)


def _loss_curves(compared: Mapping[str, Path]) -> Any:
    """The losses of training and validation of runs by key, named after the run where there are several."""
    import pandas as pd

    rows = []
    for key, path in compared.items():
        for name, points in runs.curves(path).items():
            curve = name if len(compared) == 1 else f"{key} {name}"
            if name in ("train/loss", "val/loss"):
                rows += [(step, value, curve) for step, value in points if math.isfinite(value)]
    return pd.DataFrame(rows, columns=["step", "loss", "curve"])


def _usage_curves(rows: list[dict[str, float]]) -> tuple[Any, Any]:
    """Speed and memory over the time in which the run was watched, in minutes."""
    import pandas as pd

    speed = pd.DataFrame(runs.thinned(steps_per_s(rows)), columns=["minutes", "steps per s"])
    memory = [
        ((row["time"] - rows[0]["time"]) / 60, row[column], of)
        for row in runs.thinned(rows)
        for column, of in (("memory_mb", "process"), ("gpu_mb", "GPU"))
        if column in row
    ]
    return speed, pd.DataFrame(memory, columns=["minutes", "MB", "of"])


def _report_html(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of runs by key as an HTML table with a column for each run, or what to do if there are none."""
    names = list(dict.fromkeys(name for of in figures.values() for name in of))
    if not names:
        return '<p class="hint">Not evaluated yet: press Evaluate.</p>'
    head = "".join(f"<th>{html.escape(key)}</th>" for key in ("", *figures))
    rows = (
        f"<tr><th>{html.escape(str(name))}</th>"
        + "".join(f"<td>{html.escape(_figure(of[name])) if name in of else '–'}</td>" for of in figures.values())
        for name in names
    )
    return f'<table class="figures"><tr>{head}</tr>{"".join(f"{row}</tr>" for row in rows)}</table>'


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_figure, value)) if isinstance(value, list) else str(value)


def _plot(label: str, x: str, y: str, color: str | None = None) -> gr.LinePlot:
    """A plot with its title inside: a label above it would take the place of the legend."""
    return gr.LinePlot(
        x=x, y=y, color=color, title=label, color_title="", show_label=False, height=280, min_width=240, buttons=[]
    )


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return "-"
