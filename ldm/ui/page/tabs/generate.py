"""The tab that generates: its fields, and what its buttons do."""

import html
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.conditioning.text.truncation import bounded
from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating import png_settings
from ldm.ui.generating.image_generator import MAX_PENDING, GeneratedImage
from ldm.ui.generating.settings import MAX_SEED
from ldm.ui.page import field_updates
from ldm.ui.page.fields import Fields
from ldm.ui.page.messages import show_errors
from ldm.ui.page.progress import ENDED, WAITING, bar, generate_all, reporting
from ldm.ui.page.sending import Sending, send_buttons, shown_canvas
from ldm.ui.page.widgets import (
    browser_form,
    quiet_event,
    settings_of_clicked,
    with_field_parameters,
)


class GenerateTab:
    """Builds the tab inside the current `gr.Blocks`; `fields` are its inputs by name, in the order of the API."""

    def __init__(self, app: App, tabs: gr.Tabs):
        self.app, self.tabs = app, tabs
        self.files = gr.State([])  # of the images in the gallery
        self.kept, self.kept_results = browser_form("form"), browser_form("results")
        inputs = Fields(app)
        with gr.Row(elem_id="work"):
            with gr.Column(elem_id="ask", min_width=300):
                inputs.build_prompt()
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", scale=3, min_width=80, elem_id="generate")
                    self.stop = gr.Button("Cancel", variant="stop", scale=1, min_width=80, elem_id="cancel")
                self.status = gr.HTML(bar("Ready"), elem_id="status", padding=False)
            with gr.Column(elem_id="results", min_width=300):
                self._build_results()
            with gr.Column(elem_id="settings", min_width=300):
                inputs.build_settings()
        self.fields, self.modes, self.png = inputs.fields, inputs.modes, inputs.png
        self.inputs = inputs
        self._events()

    def _build_results(self) -> None:
        self.gallery = gr.Gallery(
            label="Images",
            show_label=False,  # it would cover a part of the first image
            columns=2,
            object_fit="contain",
            type="filepath",  # else each image that a button sends on would be decoded, all at once
            format="png",
            elem_id="images",
            preview=False,
            interactive=False,
        )
        with gr.Row():
            self.send_buttons = send_buttons("to")
        self.last_seed = gr.Number(None, label="Seed of the first image", precision=0, visible=False)
        with gr.Accordion("Settings of the image", open=False):
            self.about = gr.JSON(label="As saved in the PNG", elem_id="about")

    def _events(self) -> None:
        fields, quietly = self.fields, quiet_event(self.status)
        values = list(fields.values())
        self.sending = Sending(self.app, fields, self.modes, self.tabs)
        self._generate_events(values)
        fields["run"].input(
            show_errors(self.choose),
            [fields["run"], fields["checkpoint"]],
            [fields[name] for name in field_updates.RUN_FIELDS],
            **quietly,
        )
        suited = [fields["run"], *(fields[name] for name in field_updates.RUN_FIELDS)]
        inputs, count = self.inputs, [fields["run"], fields["prompt"]]
        inputs.fast.click(show_errors(self.faster), fields["run"], suited, **quietly)
        fields["run"].change(self.offer_fast, fields["run"], inputs.fast, **quietly)
        gr.on(
            [fields["prompt"].change, fields["run"].change], show_errors(self.count_tokens), count, inputs.tokens,
            trigger_mode="always_last", **quietly,
        )  # fmt: skip
        inputs.refresh.click(show_errors(self.look), None, [fields["run"], *self.adapter_fields()], **quietly)
        inputs.reuse.click(show_errors(self.reuse_seed), self.last_seed, fields["seed"], **quietly)
        size = [fields["width"], fields["height"]]
        inputs.extend.click(
            show_errors(self.sending.extend), [fields["run"], fields["editor"], *size, *inputs.edges],
            [fields["editor"], *size], **quietly,
        )  # fmt: skip
        restored = self.png.upload(
            show_errors(self.restore_upload), self.png, [*values, self.modes, self.about],
            **{**quietly, "api_visibility": "public"}, api_name="restore", preprocess=False,
        )  # fmt: skip
        restored.then(show_errors(self.refill), self.png, fields["editor"], **quietly)
        self.gallery.select(show_errors(self.pick), self.files, self.about, **quietly)
        self.sending.wire(self.send_buttons, self.gallery, self.files)

    def _generate_events(self, values: list[Any]) -> None:
        """The events that generate. With `preprocess=False` the fields come as they were sent, and `form` reports what
        is wrong with them."""
        quietly = quiet_event(self.status)
        outputs = [self.status, self.gallery, self.last_seed, self.about, self.files]
        self.go.click(None, None, self.status, js=WAITING, **quietly)
        kept = [self.fields[name] for name in field_updates.KEPT]
        self.go.click(self.keep, kept, self.kept, queue=False, **quietly)
        generate = reporting(self.status, self.generate)
        generating = self.go.click(
            with_field_parameters(generate, self.fields), values, outputs, api_name="generate",
            preprocess=False, concurrency_limit=MAX_PENDING, concurrency_id="generate", show_progress="hidden",
        )  # fmt: skip
        generating.success(self.keep_results, self.files, self.kept_results, **quietly)
        generating.failure(None, self.status, self.status, js=ENDED, **quietly)
        self.stop.click(None, cancels=generating)

    def adapter_fields(self) -> list[Any]:
        """The fields that choose LoRAs, ControlNets and models that enlarge."""
        slots = [self.fields[f"{kind}_{i}"] for kind in ("lora", "control") for i in range(forms.SLOTS)]
        return [*slots, self.fields["enlarge"]]

    # What the buttons do ---------------------------------------------------------------------------------------------

    def keep(self, *values: Any) -> dict[str, Any]:
        """What the browser keeps of the fields for the next visit."""
        return dict(zip(field_updates.KEPT, values, strict=True))

    def keep_results(self, files: list[str]) -> list[str]:
        """The names of the images in the gallery, which the browser keeps."""
        return [self.app.store.name_of(Path(file)) for file in files]

    def generate(self, given: dict[str, Any]) -> Iterator[dict[Any, Any]]:
        """Generates, and yields the progress, previews and finished images."""
        settings = forms.settings_of(given, self.app.store, self.app.served_files.path)
        requests = forms.prompts_of(given, settings)
        yield {self.status: bar("Loading model…")}
        count = 0
        for shown in generate_all(self.app.generator, requests):
            changes: dict[Any, Any] = {self.status: shown.status}
            if shown.previews or len(shown.finished) > count:
                count = len(shown.finished)
                previews = [self.app.served_files.save(image) for image in shown.previews]
                changes |= self._gallery([image.path for image in shown.finished], previews)
            yield changes | (self._finished(shown.finished) if shown.last else {})

    def _gallery(self, paths: list[Path], previews: list[str]) -> dict[Any, Any]:
        """The gallery with finished images, and previews of those in progress."""
        shown: list[Any] = [(self.app.served_files.copy(path), path.stem.partition("-")[2]) for path in paths]
        shown += [(path, "preview") for path in previews]
        columns = max(2, round(len(shown) ** 0.5 + 0.3)) if len(shown) > 1 else 1
        gallery = gr.update(value=shown, columns=min(columns, 6), selected_index=None)
        return {self.gallery: gallery, self.files: [*map(str, paths), *previews]}

    def _finished(self, images: list[GeneratedImage]) -> dict[Any, Any]:
        first, n = images[0].settings, len(images)
        for remark in dict.fromkeys(remark for image in images for remark in image.remarks):
            gr.Warning(html.escape(remark), duration=None)
        text = bar(f"{n} image{'s' * (n > 1)}, seed {first.seed}", 1, "done")
        return {self.status: text, self.last_seed: first.seed, self.about: first.as_dict()}

    def choose(self, run: str, checkpoint: str | None = None) -> list[Any]:
        """Updates of the fields that depend on the run."""
        return [update for _, update in field_updates.suiting(self.app, run).items()]

    def faster(self, run: str) -> list[Any]:
        """The run's distilled student, with its own sampling options."""
        student = self.app.models.student(run)
        if student is None:
            raise UserError(f"{run} has no distilled student: start one with finetune=distill base={run}.")
        return [gr.update(value=student), *self.choose(student)]

    def offer_fast(self, run: str) -> Any:
        """The button of the fast preset, visible for a run that was distilled."""
        return gr.update(visible=self.app.models.student(run or "") is not None)

    def count_tokens(self, run: str, prompt: str) -> str:
        """How many of the tokens that the model reads a prompt has."""
        if run not in self.app.models.names():
            return ""
        parts = self.app.models.get(run).conditioner.parts.values()
        counts = [count for part in parts if (count := part.count_tokens(prompt or ""))]
        return "".join(f'<p class="hint">{used} of {limit} tokens</p>' for used, limit in counts[:1] if prompt)

    def look(self) -> list[Any]:
        """The runs and adapters that there are now."""
        names = self.app.models.names()
        if not names:
            gr.Info("There is no trained run of stage two yet: start one on the tab Runs.")
        loras, controls = self.app.models.adapters()
        choices = [gr.update(choices=["", *loras])] * forms.SLOTS + [gr.update(choices=["", *controls])] * forms.SLOTS
        enlargers = self.app.models.enlargers()
        choices.append(gr.update(choices=["", *enlargers], visible=bool(enlargers)))
        only: dict[str, Any] = {"value": names[0]} if len(names) == 1 else {}
        return [gr.update(choices=names, **only), *choices]

    def reuse_seed(self, seed: float | None) -> Any:
        """The last seed, for the field of the seed."""
        if seed is None or not 0 <= seed < MAX_SEED:
            gr.Info("There is no last seed yet: generate an image first.")
            return gr.skip()
        return int(seed)

    def restore_upload(self, file: Any) -> list[Any]:
        """The fields filled with the settings of an uploaded image."""
        return self.restore(None if file is None else str(forms.upload_path(file, "image", self.app.served_files.path)))

    def restore(self, file: str | None) -> list[Any]:
        """The fields filled with the settings of an image."""
        if file is None:
            return [gr.skip()] * (len(self.fields) + 2)
        settings, remarks = png_settings.read_settings(file, _Sampling(self.app))
        names = self.app.models.names()
        if settings.run not in names:
            remarks.append(
                f"Its run '{bounded(settings.run)}' isn't on this machine: another is chosen."
                if settings.run
                else "It names no run: one is chosen."
            )
            settings = replace(settings, run=names[0] if names else "", checkpoint=None)
        for remark in remarks:
            gr.Warning(html.escape(remark))
        filled = field_updates.filled(self.app, self.fields, settings)
        mode = filled[list(self.fields).index("mode")]
        return [*filled, gr.Tabs(selected=mode), settings.as_dict()]

    def refill(self, file: str | None) -> Any:
        """The image editor filled with the settings of an image: a second step, once it is visible."""
        if file is None:
            return gr.skip()
        settings, _ = png_settings.read_settings(file)
        if not settings.mask or settings.run not in self.app.models.names():
            return gr.skip()
        form = forms.form_of(settings, self.app.models.traits(settings.run, settings.checkpoint), self.app.store)
        return shown_canvas(form["editor"])

    def pick(self, files: list[str], event: gr.EventData) -> Any:
        """The settings of the image that was clicked; a preview, which has none, changes nothing."""
        saved = [file for file in files if not Path(file).is_relative_to(self.app.served_files.path)]
        return settings_of_clicked(saved, event)

    def start(self, kept: Any) -> list[Any]:
        """The fields when the page is opened: as the browser `kept` them, for the run that the page starts with."""
        return field_updates.restored(self.app, self.fields, kept)

    def start_results(self, names: Any) -> dict[Any, Any]:
        """The gallery when the page is opened: the last images of this browser, those that are still stored."""
        paths = self.app.store.images_named(names)
        if not paths:
            return {self.gallery: gr.skip()}
        settings, _ = png_settings.read_settings(paths[0])
        return self._gallery(paths, []) | {self.last_seed: settings.seed, self.about: settings.as_dict()}


class _Sampling(dict):
    """The model's own sampling options by run, read on demand."""

    def __init__(self, app: App):
        self.app = app

    def get(self, run: Any, default: Any = None) -> Any:
        """The options of `run`, `default` where there is no such run."""
        return self.app.models.traits(run).sampling if run in self.app.models.names() else default
