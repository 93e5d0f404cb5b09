"""The tab that draws: its fields, and what its buttons do."""

import html
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.conditioning.text.truncation import bounded
from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating import png_settings
from ldm.ui.generating.image_generator import MAX_PENDING, GeneratedImage, Progress, Waiting
from ldm.ui.generating.models import Traits
from ldm.ui.generating.settings import Settings
from ldm.ui.page.fields import Fields, plain_guidance
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import (
    WAITING,
    bar,
    browser_form,
    ended_outputs,
    enlarged_preview,
    open_mode,
    quiet_event,
    selected_file,
    with_field_parameters,
)

# Kept by the browser between visits.
KEPT = ("run", "prompt", "negative", "labels", "n", "seed", "new_seed", "sampler", "steps", "guidance")


class GenerateTab:
    """Builds the tab inside the current `gr.Blocks`; `fields` are its inputs by name, in the order of the API."""

    def __init__(self, app: App):
        self.app = app
        self.drawn = gr.State([])  # files of the last pictures
        self.kept = browser_form("draw")
        with gr.Row():
            with gr.Column(scale=5, min_width=360):
                inputs = Fields(app)
            with gr.Column(scale=6, min_width=360):
                self._answer()
        self.fields, self.modes, self.png = inputs.fields, inputs.modes, inputs.png
        self.go, self.stop, self.refresh, self.reuse = inputs.go, inputs.stop, inputs.refresh, inputs.reuse
        self.fast = inputs.fast
        self._events()

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
            height=620,
            preview=False,
            interactive=False,
        )
        with gr.Row():
            self.to_image = gr.Button("→ Image to image", size="sm", elem_id="to-image")
            self.to_editor = gr.Button("→ Inpaint", size="sm", elem_id="to-inpaint")
            self.to_vary = gr.Button("→ Variations", size="sm")
        self.last_seed = gr.Number(None, label="Seed of the first picture", precision=0, visible=False)
        with gr.Accordion("Settings of the picture", open=False):
            self.about = gr.JSON(label="As kept in the PNG", elem_id="about")

    def _events(self) -> None:
        fields, quietly = self.fields, quiet_event(self.status)
        values = list(fields.values())
        self._generates(values)
        fields["run"].input(
            show_errors(self.choose),
            [fields["run"], fields["checkpoint"]],
            [fields[name] for name in SUITED],
            **quietly,
        )
        suited = [fields["run"], *(fields[name] for name in SUITED)]
        self.fast.click(show_errors(self.faster), fields["run"], suited, **quietly)
        self.refresh.click(show_errors(self.look), None, [fields["run"], *self._choices()], **quietly)
        self.reuse.click(show_errors(self.reuse_seed), self.last_seed, [fields["seed"], fields["new_seed"]], **quietly)
        restored = self.png.upload(
            show_errors(self.restore_upload), self.png, [*values, self.modes, self.about],
            **{**quietly, "api_visibility": "public"}, api_name="restore", preprocess=False,
        )  # fmt: skip
        restored.then(show_errors(self.refill), self.png, fields["editor"], **quietly)
        self.gallery.select(show_errors(self.pick), self.drawn, self.about, **quietly)
        for button, target, mode in (
            (self.to_image, "image", "image"),
            (self.to_editor, "editor", "inpaint"),
            (self.to_vary, "vary", "variations"),
        ):
            send = show_errors(self.send_to_editor if target == "editor" else self.send)
            # The drawing field takes a picture only once it is on the screen.
            open_there = button.click(open_mode(mode), None, [self.modes, fields["mode"]], **quietly)
            open_there.then(send, [self.gallery, self.drawn], fields[target], **quietly)

    def _generates(self, values: list[Any]) -> None:
        """`preprocess=False`: the fields come as they were sent, so that `form` says what is wrong with them."""
        outputs = [self.status, self.preview, self.gallery, self.last_seed, self.about, self.drawn]
        self.go.click(None, None, self.status, js=WAITING, **quiet_event(self.status))
        self.go.click(
            self.keep, [self.fields[name] for name in KEPT], self.kept, queue=False, **quiet_event(self.status)
        )
        drawing = self.go.click(
            show_errors(with_field_parameters(self.generate, self.fields)), values, outputs, api_name="generate",
            preprocess=False, concurrency_limit=MAX_PENDING, concurrency_id="generate", show_progress="hidden",
        )  # fmt: skip
        drawing.failure(ended_outputs, None, [self.status, self.preview], queue=False, **quiet_event(self.status))
        self.stop.click(None, cancels=drawing)

    def _choices(self) -> list[Any]:
        return [self.fields[f"{kind}_{i}"] for kind in ("lora", "control") for i in range(forms.SLOTS)]

    # What the buttons do ---------------------------------------------------------------------------------------------

    def keep(self, *values: Any) -> dict[str, Any]:
        """What the browser is to keep of the fields, for the next visit."""
        return dict(zip(KEPT, values, strict=True))

    def generate(self, given: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Draws, and shows how far it is."""
        settings, skip = forms.settings_of(given, self.app.store, self.app.served_files.path), gr.skip()
        yield bar("the model is read", 0), skip, skip, skip, skip, skip
        with closing(self.app.generator.generate(settings)) as drawing:
            for event in drawing:
                if isinstance(event, Waiting):
                    yield bar("others' images are being generated", 0), *[skip] * 5
                elif isinstance(event, Progress):
                    look = (
                        skip
                        if event.preview is None
                        else gr.update(value=enlarged_preview(event.preview), visible=True)
                    )
                    yield bar(f"step {event.step} of {event.steps}", event.step / event.steps), look, *[skip] * 4
                else:
                    yield self._finished(event)

    def _finished(self, pictures: list[GeneratedImage]) -> tuple[Any, ...]:
        files = [(self.app.served_files.copy(one.path), f"seed {one.settings.seed}") for one in pictures]
        first, n = pictures[0].settings, len(pictures)
        for remark in pictures[0].remarks:
            gr.Warning(html.escape(remark), duration=None)
        text = bar(f"{n} picture{'s' * (n > 1)}, seed {first.seed}", 1, "done")
        columns = min(4, max(1, round(n**0.5 + 0.3)))
        gallery = gr.update(value=files, columns=columns, selected_index=None)
        kept = [str(one.path) for one in pictures]
        return text, gr.update(visible=False), gallery, first.seed, first.as_dict(), kept

    def choose(self, run: str, checkpoint: str | None = None) -> list[Any]:
        """The fields, as they suit a run."""
        return [update for _, update in self._suiting(run).items()]

    def faster(self, run: str) -> list[Any]:
        """The run's distilled student, or itself where it is one, with its own sampler, steps and guidance."""
        student = run if self.app.models.traits(run).distilled else f"{run}-fast"
        if student not in self.app.models.names():
            raise UserError(
                f"{run} has no distilled student: make one by python train_ldm.py finetune=distill base={run}, with "
                "the options of its data."
            )
        return [gr.update(value=student), *self.choose(student)]

    def look(self) -> list[Any]:
        """The runs and adapters that there are by now."""
        names = self.app.models.names()
        if not names:
            gr.Info("There is no trained run of stage two yet: start one under Runs.")
        loras, controls = self.app.models.adapters()
        choices = [gr.update(choices=["", *loras])] * forms.SLOTS + [gr.update(choices=["", *controls])] * forms.SLOTS
        only: dict[str, Any] = {"value": names[0]} if len(names) == 1 else {}
        return [gr.update(choices=names, **only), *choices]

    def reuse_seed(self, seed: float | None) -> tuple[Any, Any]:
        if seed is None:
            gr.Info("Nothing was drawn yet, so there is no seed to use again.")
            return gr.skip(), gr.skip()
        return int(seed), False

    def restore_upload(self, file: Any) -> list[Any]:
        """The fields as a picture's settings have them, which was sent."""
        return self.restore(
            None if file is None else str(forms.upload_path(file, "picture", self.app.served_files.path))
        )

    def restore(self, file: str | None) -> list[Any]:
        """The fields as a picture's settings have them."""
        if file is None:
            return [gr.skip()] * (len(self.fields) + 2)
        settings, remarks = png_settings.read_settings(file, _Sampling(self.app))
        names = self.app.models.names()
        if settings.run not in names:
            remarks.append(f"Its run '{bounded(settings.run)}' isn't here." if settings.run else "It names no run.")
            settings = replace(settings, run=names[0] if names else "", checkpoint=None)
        for remark in remarks:
            gr.Warning(html.escape(remark))
        filled = self.filled(settings)
        mode = filled[list(self.fields).index("mode")]
        return [*filled, gr.Tabs(selected=mode), settings.as_dict()]

    def refill(self, file: str | None) -> Any:
        """The drawing field as a picture's settings have it, in a second step, when it is on the screen."""
        if file is None:
            return gr.skip()
        settings, _ = png_settings.read_settings(file)
        if not settings.mask or settings.run not in self.app.models.names():
            return gr.skip()
        form = forms.form_of(settings, self.app.models.traits(settings.run, settings.checkpoint), self.app.store)
        return _shown_canvas(form["editor"])

    def filled(self, settings: Settings) -> list[Any]:
        """An update of every field, so that Draw gives these settings."""
        about = self.app.models.traits(settings.run, settings.checkpoint)
        form = forms.form_of(settings, about, self.app.store)
        updates = {name: gr.update(value=_value(form[name])) if name in form else gr.skip() for name in self.fields}
        updates["mode"] = form["mode"]
        for name, update in self._suiting(settings.run, about).items():
            value = {"value": _value(form[name])} if name in form else {}
            updates[name] = gr.update(**{**update, **value})
        updates["editor"] = gr.skip()  # see refill
        return list(updates.values())

    def pick(self, drawn: list[str], event: gr.SelectData) -> Any:
        """The settings of the picture that was clicked."""
        return png_settings.read_settings(drawn[event.index])[0].as_dict() if event.index < len(drawn) else gr.skip()

    def send(self, gallery: gr.Gallery, drawn: list[str]) -> Any:
        return self.app.served_files.copy(Path(selected_file(gallery, drawn)))

    def send_to_editor(self, gallery: gr.Gallery, drawn: list[str]) -> Any:
        return _shown_canvas(forms.canvas(Path(selected_file(gallery, drawn))))

    def start(self, kept: Any) -> list[Any]:
        """The fields when the page is opened: as this browser `kept` them, for the run that it was started with."""
        app = self.app
        names, kept = app.models.names(), kept if isinstance(kept, dict) else {}
        updates: dict[str, Any] = {name: gr.skip() for name in self.fields}
        # gradio makes a number field that is empty 0 when it first appears, unless it was emptied by an event.
        updates |= {name: gr.update(value=None) for name, field in self.fields.items() if _is_empty_number(field)}
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
        return {
            "checkpoint": gr.update(
                choices=[forms.FINISHED, *reversed(self.app.models.checkpoints(run))], value=forms.FINISHED
            ),
            "prompt": gr.update(visible=text, **_cleared(text, "")),
            "negative": gr.update(visible=text, **_cleared(text, "")),
            "labels": gr.update(choices=list(about.classes), visible=label, **_cleared(label, [])),
            "map": gr.update(visible="map" in needs, **_cleared("map" in needs, None)),
            "sampler": gr.update(value=own["sampler"]),
            "steps": gr.update(value=own["steps"]),
            "guidance": gr.update(value=plain_guidance(own)),
        }


SUITED = ("checkpoint", "prompt", "negative", "labels", "map", "sampler", "steps", "guidance")


class _Sampling(dict):
    """By run, the model's own way of sampling; read when inputs for."""

    def __init__(self, app: App):
        self.app = app

    def get(self, run: Any, default: Any = None) -> Any:
        return self.app.models.traits(run).sampling if run in self.app.models.names() else default


def _is_empty_number(field: Any) -> bool:
    return isinstance(field, gr.Number) and field.value is None


def _value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _shown_canvas(canvas: Any) -> Any:
    return canvas if canvas is None else {**canvas, "composite": canvas["background"]}


def _cleared(kept: bool, value: Any) -> dict[str, Any]:
    """What empties a field that the model doesn't read."""
    return {} if kept else {"value": value}
