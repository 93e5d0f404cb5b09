"""The tab of runs: how one stands, live; starting, stopping, resuming."""

import html
import math
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import bar, browser_form, quiet_event
from ldm.ui.runs import run_state as runs
from ldm.ui.runs.launch import NAME_BYTES
from ldm.ui.runs.watch import read_record, steps_per_s

LIVE_SECONDS = 3.0
_AS_SENT: dict[str, Any] = {"preprocess": False}  # what is wrong with it, the functions say


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
            self.look = gr.Button("↻ Look for runs", size="sm", scale=0, min_width=120)
            self.resume = gr.Button("Resume", size="sm", scale=0, min_width=90)
            self.stop = gr.Button("Stop", size="sm", variant="stop", scale=0, min_width=90, elem_id="stop-run")
        self.status = gr.HTML(bar("choose a run"), elem_id="run-status")
        with gr.Row():
            self.loss = _plot("Loss", "step", "loss", color="curve")
            self.speed = _plot("Speed, steps per second", "minutes", "steps per s")
            self.memory = _plot("Memory, MB", "minutes", "MB", color="of")
        self.grids = gr.Gallery(
            label="Samples while training",
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
                label="Pictures of the report", columns=3, object_fit="contain", format="png", height=300
            )
        with gr.Accordion("What it printed", open=False):
            self.log = gr.Textbox(show_label=False, lines=14, max_lines=14, interactive=False, elem_classes="log")
        self._form()

    def _form(self) -> None:
        self.kept = browser_form("start")
        with gr.Accordion("Start a run", open=False, elem_id="start-box"):
            with gr.Row():
                stages = [("one: autoencoder", "vae"), ("two: diffusion", "ldm")]
                self.stage = gr.Radio(stages, value="ldm", label="Stage")
                self.name = gr.Textbox("", label="Name", placeholder="its folder")
                self.overwrite = gr.Checkbox(False, label="Throw away a run of this name")
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
        self.run.change(show, [self.run, shown], [*view, shown], **quietly)
        self.timer.tick(show, [self.run, shown], [*view, shown], **quietly)
        self.look.click(show_errors(self.found), None, self.run, **quietly)
        started = [self.run, self.status]
        self.go.click(lambda *form: form, self.form, self.kept, queue=False, **quietly)
        form, as_sent = [self.stage, self.name, self.options, self.overwrite], _AS_SENT
        self.go.click(show_errors(self.start), form, started, api_name="start_run", **as_sent)
        self.stop.click(show_errors(self.stop_run), self.run, self.status, api_name="stop_run", **as_sent)
        self.resume.click(show_errors(self.resume_run), self.run, self.status, api_name="resume_run", **as_sent)
        state = gr.JSON(visible=False)
        gr.Button(visible=False).click(show_errors(self.describe), self.run, state, api_name="run_state", **as_sent)

    # What the buttons do ---------------------------------------------------------------------------------------------

    def show(self, key: str | None, shown: str) -> list[Any]:
        """All that there is of a run; what hasn't changed since it was `shown` is left as it is."""
        if not key or key not in self.app.watcher.listed():
            return [bar(f"there is no run {key}" if key else "no run is chosen"), *[gr.skip()] * 7, ""]
        run = self.app.watcher.state(key)
        record, log = self.app.watcher.record(key), self.app.launcher.log(key)
        now = "|".join(
            [
                key,
                *(
                    _stamp(path)
                    for path in (run.path / "metrics.csv", record, log, run.path / "samples", run.path / "evaluation")
                ),
            ]
        )
        status = _headline(run)
        if now == shown:
            return [status, *[gr.skip()] * 7, shown]
        speed, memory = _usage_curves(read_record(record))
        grids = [
            (self.app.served_files.copy(path), f"step {step}") for step, path in reversed(runs.sample_grids(run.path))
        ]
        figures, pictures = runs.evaluation(run.path)
        evaluated = [self.app.served_files.copy(path) for path in pictures]
        said = (
            "\n".join(runs.tail(log, 200)) or "It wasn't started from this page, so what it printed isn't known here."
        )
        plots = [gr.update(value=frame, visible=len(frame) > 0) for frame in (_loss_curves(run.path), speed, memory)]
        gallery = gr.update(value=evaluated, visible=bool(evaluated))
        return [status, *plots, grids, _report_html(figures, key), gallery, said, now]

    def describe(self, key: str) -> dict[str, Any]:
        """How a run stands, as plain data."""
        _check_key(key)
        run = self.app.watcher.state(key)
        return {"status": run.status, "step": run.step, "loss": run.loss, "said": run.error}

    def recall(self, kept: Any) -> list[Any]:
        """The form of a new run as this browser kept it."""
        return kept if isinstance(kept, list) and len(kept) == len(self.form) else [gr.skip()] * len(self.form)

    def found(self) -> Any:
        return gr.update(choices=self.app.watcher.listed())

    def start(self, stage: str, name: str, options: str, overwrite: bool) -> tuple[Any, str]:
        """Starts a run in a process of its own."""
        if not isinstance(stage, str) or stage not in runs.STAGES:
            raise UserError(f"there is no stage {annotations.as_typed(stage)}: take vae or ldm.")
        overwrite, options = overwrite or False, options or ""
        for value, kind, what in ((name, str, "name"), (options, str, "options"), (overwrite, bool, "overwrite")):
            annotations.check_value(value, kind, what)
        key = self.app.launcher.start(stage, name.strip(), options, overwrite)
        return gr.update(choices=self.app.watcher.listed(), value=key), bar(f"{key} starting")

    def stop_run(self, key: str) -> str:
        """Asks a run to save and end."""
        _check_key(key)
        self.app.launcher.stop(key)
        return bar(f"{key} saves and ends", 0, "stopped")

    def resume_run(self, key: str) -> str:
        """Goes on with a run."""
        _check_key(key)
        self.app.launcher.resume(key)
        return bar(f"{key} goes on")


def _check_key(key: Any) -> None:
    """Raises UserError for what is no run's key; whether there is such a run, others know."""
    if not isinstance(key, str) or not key or len(key) > 2 * NAME_BYTES:
        raise UserError(f"there is no run {annotations.as_typed(key)}: give STAGE/NAME, as ldm/emoji.")


def _headline(run: runs.RunState) -> str:
    """A line that says how a run stands."""
    share = 1.0 if run.status == "finished" else run.step / run.steps if run.step and run.steps else 0.0
    parts = [run.key, run.status]
    parts += [f"step {run.step}" + (f" of {run.steps}" if run.steps else "")] if run.step is not None else []
    parts += [f"loss {run.loss:.4g}"] if run.loss is not None else []
    parts += [f"{run.samples_per_s:.0f} samples/s"] if run.samples_per_s else []
    parts += [run.error] if run.error else []
    state = {"finished": "done", "failed": "stopped", "stopped": "stopped"}.get(run.status, "")
    return bar(" · ".join(parts), share, state)


def _loss_curves(path: Path) -> Any:
    """The losses of training and validation."""
    import pandas as pd

    curves = {name: points for name, points in runs.curves(path).items() if name in ("train/loss", "val/loss")}
    rows = [(step, value, name) for name, points in curves.items() for step, value in points if math.isfinite(value)]
    return pd.DataFrame(rows, columns=["step", "loss", "curve"])


def _usage_curves(rows: list[dict[str, float]]) -> tuple[Any, Any]:
    """Speed and memory over the minutes that the run was watched."""
    import pandas as pd

    speed = pd.DataFrame(runs.thinned(steps_per_s(rows)), columns=["minutes", "steps per s"])
    memory = [
        ((row["time"] - rows[0]["time"]) / 60, row[column], of)
        for row in runs.thinned(rows)
        for column, of in (("memory_mb", "process"), ("gpu_mb", "GPU"))
        if column in row
    ]
    return speed, pd.DataFrame(memory, columns=["minutes", "MB", "of"])


def _report_html(figures: dict[str, Any], key: str) -> str:
    """Figures as a table; how to get them where there are none."""
    if not figures:
        stage, _, name = key.partition("/")
        command = html.escape(f"python evaluate.py run={name} stage={stage}")
        return f'<p class="hint">Not evaluated yet: <code>{command}</code></p>'
    rows = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(_figure(v))}</td></tr>" for k, v in figures.items()
    )
    return f'<table class="figures">{rows}</table>'


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_figure, value)) if isinstance(value, list) else str(value)


def _plot(label: str, x: str, y: str, color: str | None = None) -> gr.LinePlot:
    """With its name inside: a label above takes the room in which the legend is drawn."""
    return gr.LinePlot(
        x=x, y=y, color=color, title=label, color_title="", show_label=False, height=280, min_width=240, buttons=[]
    )


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return "-"
