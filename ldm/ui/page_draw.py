"""The tab that draws: its fields, and what its buttons do."""

import html
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.diffusion import SAMPLERS
from ldm.ui import form as forms
from ldm.ui import png_settings
from ldm.ui.app import App
from ldm.ui.generate import Cancelled, Drawn, Progress, enlarged
from ldm.ui.models import Traits
from ldm.ui.settings import MAX_PICTURES, MAX_STEPS, SPACINGS, Settings
from ldm.ui.tell import told

SHOWN = 320  # pixels that a small picture is enlarged to in the preview
KEPT = (
    "run",
    "prompt",
    "negative",
    "labels",
    "n",
    "seed",
    "new_seed",
    "sampler",
    "steps",
    "guidance",
)  # between starts


class DrawTab:
    """Builds the tab inside the current `gr.Blocks`; `fields` are its inputs by name, in the order of the API."""

    def __init__(self, app: App):
        self.app = app
        self.fields: dict[str, Any] = {}
        self.drawn = gr.State([])  # files of the last pictures
        self.chosen = gr.State(None)  # the one among them that was clicked
        with gr.Row():
            with gr.Column(scale=5, min_width=360):
                self._ask()
            with gr.Column(scale=6, min_width=360):
                self._answer()
        self._events()

    def _field(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    def _ask(self) -> None:
        names = self.app.models.names()
        with gr.Row():
            self._field("run", gr.Dropdown(names, value=next(iter(names), None), label="Run", allow_custom_value=True))
            self._field(
                "checkpoint",
                gr.Dropdown([forms.FINISHED], value=forms.FINISHED, label="Checkpoint", allow_custom_value=True),
            )
            self.refresh = gr.Button("↻ Look for runs", size="sm", min_width=80, scale=0, elem_id="refresh")
        self._field("mode", gr.Textbox("text", visible=False, label="Mode"))
        self._field(
            "prompt", gr.Textbox(label="Prompt", lines=2, placeholder="what to draw", elem_id="prompt", max_length=4000)
        )
        self._field("negative", gr.Textbox(label="Negative prompt", lines=1, max_length=4000))
        self._field("labels", gr.Dropdown([], value=[], label="Classes", multiselect=True, allow_custom_value=True))
        self._field("map", _image("Map: what is to be where", visible=False))
        self._modes()
        with gr.Row():
            self.go = gr.Button("Draw", variant="primary", scale=3, elem_id="draw")
            self.stop = gr.Button("Cancel", variant="stop", scale=1, elem_id="cancel")
        self._sampling()
        self._adapters()
        with gr.Accordion("Settings from a picture", open=False, elem_id="restore-box"):
            self.png = gr.File(label="A PNG of this page or of sample.py", file_types=[".png"], elem_id="restore")

    def _modes(self) -> None:
        with gr.Tabs(elem_id="modes") as self.modes:
            with gr.Tab(forms.MODES["text"], id="text") as text:
                gr.Markdown("Draws from noise what prompt, class or map say.", elem_classes="hint")
            with gr.Tab(forms.MODES["image"], id="image") as image:
                self._field("image", _image("Picture to change"))
                self._field("strength", gr.Slider(0, 1, 0.6, step=0.01, label="Strength: 0 keeps it, 1 ignores it"))
            with gr.Tab(forms.MODES["inpaint"], id="inpaint") as inpaint:
                self._field("editor", _editor())
                self._field("mask_strength", gr.Slider(0, 1, 1.0, step=0.01, label="Strength inside the mask"))
                self._field("feather", gr.Slider(0, 32, 0, step=1, label="Feather: pixels over which the edge blends"))
            with gr.Tab(forms.MODES["variations"], id="variations") as variations:
                self._field("vary", _image("Picture to vary"))
                self._field("vary_strength", gr.Slider(0, 1, 0.5, step=0.01, label="How far the variations go"))
        for mode, tab in {"text": text, "image": image, "inpaint": inpaint, "variations": variations}.items():
            tab.select(lambda mode=mode: mode, None, self.fields["mode"], queue=False, api_visibility="private")

    def _sampling(self) -> None:
        with gr.Row():
            self._field("n", gr.Slider(1, MAX_PICTURES, 4, step=1, label="Pictures of each", min_width=120))
            self._field("seed", gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed"))
            with gr.Column(min_width=120):
                self._field("new_seed", gr.Checkbox(True, label="New seed each time", container=False))
                self.reuse = gr.Button("♻ Reuse the last seed", size="sm", elem_id="reuse")
        with gr.Row():
            self._field("sampler", gr.Dropdown(sorted(SAMPLERS), label="Sampler", min_width=120))
            self._field("steps", gr.Slider(1, MAX_STEPS, 20, step=1, label="Steps", min_width=120))
            self._field("guidance", gr.Slider(0, 20, 3, step=0.1, label="Guidance (1 is off)", min_width=120))
        with gr.Accordion("More of the sampler", open=False):
            with gr.Row():
                self._field("width", gr.Number(None, label="Width", precision=0, min_width=80))
                self._field("height", gr.Number(None, label="Height", precision=0, min_width=80))
                spacings = [forms.AS_TRAINED, *SPACINGS]
                self._field("spacing", gr.Dropdown(spacings, value=forms.AS_TRAINED, label="Spacing", min_width=100))
            with gr.Row():
                self._field("shift", gr.Number(None, label="Shift", min_width=80))
                self._field("eta", gr.Number(None, label="Eta", min_width=80))
                self._field("rescale", gr.Number(None, label="Rescale", min_width=80))
                self._field(
                    "interval", gr.Textbox("", label="Guide only between sigmas", placeholder="0.2, 5", min_width=100)
                )

    def _adapters(self) -> None:
        with gr.Accordion("LoRAs and ControlNets", open=False):
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"lora_{i}", _choice(f"LoRA {i + 1}"))
                    self._field(f"lora_{i}_scale", gr.Slider(-2, 2, 1.0, step=0.05, label="Scale", min_width=100))
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"control_{i}", _choice(f"ControlNet {i + 1}"))
                    self._field(f"control_{i}_weight", gr.Slider(0, 2, 1.0, step=0.05, label="Weight", min_width=90))
                    self._field(f"control_{i}_start", gr.Slider(0, 1, 0.0, step=0.05, label="From", min_width=90))
                    self._field(f"control_{i}_end", gr.Slider(0, 1, 1.0, step=0.05, label="To", min_width=90))
                self._field(f"control_{i}_image", _image(f"Picture that ControlNet {i + 1} follows", height=160))

    def _answer(self) -> None:
        self.status = gr.HTML(bar("ready"), elem_id="status")
        self.preview = gr.Image(
            label="As it emerges", format="png", visible=False, interactive=False, elem_id="preview", buttons=[]
        )
        self.gallery = gr.Gallery(
            label="Pictures",
            columns=4,
            object_fit="contain",
            format="png",
            elem_id="pictures",
            height=460,
            preview=False,
        )
        with gr.Row():
            self.to_image = gr.Button("→ Image to image", size="sm")
            self.to_editor = gr.Button("→ Inpaint", size="sm", elem_id="to-inpaint")
            self.to_vary = gr.Button("→ Variations", size="sm")
        self.last_seed = gr.Number(None, label="Seed of the first picture", precision=0, visible=False)
        with gr.Accordion("Settings of the picture", open=False):
            self.about = gr.JSON(label="As kept in the PNG", elem_id="about")

    def _events(self) -> None:
        values = list(self.fields.values())
        shown = [self.status, self.preview, self.gallery, self.last_seed, self.about, self.drawn]
        generate = told(named(self.generate, self.fields))
        self.go.click(
            generate, values, shown, api_name="generate", concurrency_limit=1, concurrency_id="draw",
            show_progress="hidden",
        )  # fmt: skip
        self.stop.click(told(self.cancel), None, self.status, queue=False, api_name="cancel", show_progress="hidden")
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        suited = [self.fields[name] for name in SUITED]
        fields = self.fields
        fields["run"].input(told(self.choose), [fields["run"], fields["checkpoint"]], suited, **private)
        self.refresh.click(told(self.look), None, [fields["run"], *self._choices()], **private)
        self.reuse.click(told(self.reuse_seed), self.last_seed, [fields["seed"], fields["new_seed"]], **private)
        self.png.upload(
            told(self.restore), self.png, [*values, self.modes, self.about], api_name="restore", show_progress="hidden"
        )
        self.gallery.select(told(self.pick), self.drawn, [self.chosen, self.about], **private)
        for button, target in ((self.to_image, "image"), (self.to_editor, "editor"), (self.to_vary, "vary")):
            send = told(self.send_to_editor if target == "editor" else self.send)
            button.click(send, [self.drawn, self.chosen], fields[target], **private)

    def _choices(self) -> list[Any]:
        return [self.fields[f"{kind}_{i}"] for kind in ("lora", "control") for i in range(forms.SLOTS)]

    # What the buttons do ---------------------------------------------------------------------------------------------

    def generate(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Draws, and shows how far it is."""
        given = dict(zip(self.fields, values, strict=True))
        settings = forms.settings_of(given, self.app.store)
        cancel = self.app.cancel_of(request.session_hash)
        self.app.store.remember("draw", {key: given[key] for key in KEPT} | {"seed": settings.seed})
        skip, last = gr.skip(), Progress(0, 1)
        yield bar("the model is read", 0), skip, skip, skip, skip, skip
        drawing = self.app.painter.draw(settings, cancel)
        try:
            for event in drawing:
                if isinstance(event, Progress):
                    last = event
                    look = skip if event.preview is None else gr.update(value=big(event.preview), visible=True)
                    yield bar(f"step {event.step} of {event.steps}", event.step / event.steps), look, *[skip] * 4
                else:
                    yield self._finished(event)
        except Cancelled:
            text = f"cancelled at step {last.step} of {last.steps}"
            yield bar(text, last.step / last.steps, "stopped"), gr.update(visible=False), *[skip] * 4
        except Exception:
            yield bar("nothing was drawn", 0, "stopped"), gr.update(visible=False), *[skip] * 4
            raise
        finally:
            drawing.close()  # type: ignore[attr-defined]

    def _finished(self, pictures: list[Drawn]) -> tuple[Any, ...]:
        files = [(self.app.shown.copy(one.path), f"seed {one.settings.seed}") for one in pictures]
        first, n = pictures[0].settings, len(pictures)
        text = bar(f"{n} picture{'s' * (n > 1)}, seed {first.seed}", 1, "done")
        columns = min(4, max(1, round(n**0.5 + 0.3)))
        gallery = gr.update(value=files, columns=columns, selected_index=None)
        kept = [str(one.path) for one in pictures]
        return text, gr.update(visible=False), gallery, first.seed, first.as_dict(), kept

    def cancel(self, request: gr.Request) -> str:
        """Ends this session's drawing at its next step."""
        return bar("stopping", 1, "stopped") if self.app.cancel(request.session_hash) else bar("nothing to cancel")

    def choose(self, run: str, checkpoint: str | None = None) -> list[Any]:
        """The fields, as they suit a run."""
        return [update for _, update in self._suiting(run).items()]

    def look(self) -> list[Any]:
        """The runs and adapters that there are by now."""
        names = self.app.models.names()
        if not names:
            gr.Info("There is no trained run of stage two yet: start one under Runs.")
        loras, controls = self.app.models.adapters()
        choices = [gr.update(choices=["", *loras])] * forms.SLOTS + [gr.update(choices=["", *controls])] * forms.SLOTS
        return [gr.update(choices=names, **({"value": names[0]} if len(names) == 1 else {})), *choices]

    def reuse_seed(self, seed: float | None) -> tuple[Any, Any]:
        if seed is None:
            gr.Info("Nothing was drawn yet, so there is no seed to use again.")
            return gr.skip(), gr.skip()
        return int(seed), False

    def restore(self, file: str | None) -> list[Any]:
        """The fields as a picture's settings have them."""
        if file is None:
            return [gr.skip()] * (len(self.fields) + 2)
        settings, remarks = png_settings.read(file, _Sampling(self.app))
        names = self.app.models.names()
        if settings.run not in names:
            remarks.append(f"Its run '{settings.run}' isn't here." if settings.run else "It names no run.")
            settings = replace(settings, run=names[0] if names else "", checkpoint=None)
        for remark in remarks:
            gr.Warning(html.escape(remark))
        filled = self.filled(settings)
        mode = filled[list(self.fields).index("mode")]
        return [*filled, gr.Tabs(selected=mode), settings.as_dict()]

    def filled(self, settings: Settings) -> list[Any]:
        """An update of every field, so that Draw gives these settings."""
        about = self.app.models.traits(settings.run, settings.checkpoint)
        form = forms.form_of(settings, about, self.app.store)
        updates = {name: gr.update(value=_value(form[name])) if name in form else gr.skip() for name in self.fields}
        updates["mode"] = form["mode"]
        for name, update in self._suiting(settings.run, about).items():
            value = {"value": _value(form[name])} if name in form else {}
            updates[name] = gr.update(**{**update, **value})
        updates["editor"] = _shown_canvas(form["editor"])
        return list(updates.values())

    def pick(self, drawn: list[str], event: gr.SelectData) -> tuple[Any, Any]:
        """The picture that was clicked, and its settings."""
        file = drawn[event.index] if event.index < len(drawn) else None
        return file, png_settings.read(file)[0].as_dict() if file else gr.skip()

    def send(self, drawn: list[str], chosen: str | None) -> Any:
        return self.app.shown.copy(Path(_one(drawn, chosen)))

    def send_to_editor(self, drawn: list[str], chosen: str | None) -> Any:
        return _shown_canvas(forms.canvas(Path(_one(drawn, chosen))))

    def start(self) -> list[Any]:
        """The fields when the page is opened: as they were left, for the run that it was started with."""
        app = self.app
        names, kept = app.models.names(), app.store.recall("draw")
        updates: dict[str, Any] = {name: gr.skip() for name in self.fields}
        if not names:
            return list(updates.values())
        run = app.models.given or (kept["run"] if kept.get("run") in names else names[0])
        updates |= self._suiting(run)
        for name in KEPT:
            if name in kept and (kept.get("run") == run or name in ("n", "seed", "new_seed")):
                old = updates[name] if isinstance(updates[name], dict) else {}
                updates[name] = gr.update(**{k: v for k, v in old.items() if k != "__type__"} | {"value": kept[name]})
        updates["run"] = gr.update(choices=names, value=run)
        return list(updates.values())

    def _suiting(self, run: str, about: Traits | None = None) -> dict[str, Any]:
        """Updates of the fields that depend on the run; hidden ones are emptied."""
        about = about or self.app.models.traits(run)
        own, needs = about.sampling, about.needs
        text, label = "text" in needs, "label" in needs
        guidance = own["guidance"] if isinstance(own["guidance"], (int, float)) else 1.0
        return {
            "checkpoint": gr.update(
                choices=[forms.FINISHED, *reversed(self.app.models.checkpoints(run))], value=forms.FINISHED
            ),
            "prompt": gr.update(visible=text, **({} if text else {"value": ""})),
            "negative": gr.update(visible=text, **({} if text else {"value": ""})),
            "labels": gr.update(choices=list(about.classes), visible=label, **({} if label else {"value": []})),
            "map": gr.update(visible="map" in needs, **({} if "map" in needs else {"value": None})),
            "sampler": gr.update(value=own["sampler"]),
            "steps": gr.update(value=own["steps"]),
            "guidance": gr.update(value=guidance),
        }


SUITED = ("checkpoint", "prompt", "negative", "labels", "map", "sampler", "steps", "guidance")


class _Sampling(dict):
    """By run, the model's own way of sampling; read when asked for."""

    def __init__(self, app: App):
        self.app = app

    def get(self, run: Any, default: Any = None) -> Any:
        return self.app.models.traits(run).sampling if run in self.app.models.names() else default


def named(method: Any, fields: Mapping[str, Any]) -> Any:
    """A generator method of (request, *values) as a function with a parameter for each field, as the API lists them;
    what a field shows at first is the default."""

    def function(request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from method(request, *values)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=field.value) for name, field in fields.items()]
    request = inspect.Parameter("request", kind, annotation=gr.Request)
    function.__signature__ = inspect.Signature([request, *parameters])  # type: ignore[attr-defined]
    return function


def bar(text: str, share: float = 0.0, state: str = "") -> str:
    """A line of progress."""
    width = round(100 * min(max(share, 0.0), 1.0))
    return f'<div class="ldm-bar {state}"><div style="width:{width}%"></div><span>{html.escape(text)}</span></div>'


def big(picture: Any) -> Any:
    """A small picture enlarged, each pixel to a square."""
    return enlarged(picture, max(1, SHOWN // picture.height))


def _image(label: str, visible: bool = True, height: int = 260) -> gr.Image:
    return gr.Image(
        label=label, type="pil", format="png", sources=["upload", "clipboard"], visible=visible, height=height
    )


def _editor() -> gr.ImageEditor:
    return gr.ImageEditor(
        label="Draw over what shall be made anew",
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        brush=gr.Brush(default_size=40, colors=["#ffffff"], default_color="#ffffff", color_mode="fixed"),
        eraser=gr.Eraser(default_size=40),
        layers=False,
        transforms=(),
        height=480,
        elem_id="editor",
    )


def _choice(label: str) -> gr.Dropdown:
    return gr.Dropdown([""], value="", label=label, allow_custom_value=True, min_width=120)


def _one(drawn: list[str], chosen: str | None) -> str:
    """The picture that is meant: the one clicked, else the first."""
    if not drawn:
        raise gr.Error("Draw something first.", title="No picture", print_exception=False)
    return chosen if chosen in drawn else drawn[0]


def _value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _shown_canvas(canvas: Any) -> Any:
    return canvas if canvas is None else {**canvas, "composite": canvas["background"]}
