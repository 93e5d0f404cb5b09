"""The tab of X/Y grids."""

import html
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating import png_settings, xy
from ldm.ui.generating.image_generator import MAX_PENDING, GeneratedImage
from ldm.ui.generating.settings import Settings
from ldm.ui.page.progress import ENDED, WAITING, bar, generate_all, reporting
from ldm.ui.page.tabs.generate import GenerateTab
from ldm.ui.page.widgets import quiet_event, with_field_parameters

HELP = """Generates one image for each pair of values, with all other settings of the tab *Generate*.
Separate values by commas; whole numbers may also be given as `1-5` or `10-50:10`. For *prompt part*, the first value is
a part of the prompt that the others replace, as in `cat, dog, fish`. *checkpoint* takes the names of the run's
checkpoints and `finished`, *run* the names of runs."""


MOST_SHOWN = 1600  # pixels on a side of a sheet that isn't full: each cell of a large one would write it all


class XYTab:
    """Builds the tab inside the current `gr.Blocks`; it generates with the fields of the tab `generate`."""

    def __init__(self, app: App, generate: GenerateTab):
        self.app = app
        gr.Markdown(HELP, elem_classes="hint")
        kinds = [xy.NOT_VARIED, *xy.KINDS]
        with gr.Row():
            x_name = gr.Dropdown(kinds, value="seed", label="X axis", min_width=120)
            x_values = gr.Textbox("0-3", label="X values", scale=3)
        with gr.Row():
            y_name = gr.Dropdown(kinds, value="guidance", label="Y axis", min_width=120)
            y_values = gr.Textbox("1, 3, 6", label="Y values", scale=3)
        with gr.Row():
            go = gr.Button("Generate grid", variant="primary", scale=3, elem_id="generate-grid")
            stop = gr.Button("Cancel", variant="stop", scale=1)
        self.status = gr.HTML(bar("Ready"))
        self.sheet = gr.Image(
            label="Grid", format="png", type="filepath", interactive=False, elem_id="sheet", buttons=["download"]
        )
        fields = {"x_name": x_name, "x_values": x_values, "y_name": y_name, "y_values": y_values, **generate.fields}
        go.click(None, None, self.status, js=WAITING, **quiet_event(self.status))
        generating = go.click(
            with_field_parameters(reporting(self.status, self.generate), fields), list(fields.values()),
            [self.status, self.sheet],
            api_name="xy", preprocess=False, concurrency_limit=MAX_PENDING, concurrency_id="generate",
            show_progress="hidden",
        )  # fmt: skip
        generating.failure(None, self.status, self.status, js=ENDED, **quiet_event(self.status))
        stop.click(None, cancels=generating)

    def generate(self, given: dict[str, Any]) -> Iterator[dict[Any, Any]]:
        """Generates cell after cell, after a check of them all, and yields the progress and the sheet as it fills."""
        x, y = (xy.parse_axis(given[f"{side}_name"], given[f"{side}_values"]) for side in "xy")
        settings = forms.settings_of(given, self.app.store, self.app.served_files.path)
        if len(forms.prompts_of(given, settings)) > 1:
            raise UserError("a grid has one prompt: turn off 'A prompt on each line', or vary the prompt part.")
        requests = xy.cells(settings, x, y)
        yield {self.status: bar("Checking the values…")}
        for request in {replace(request, seed=settings.seed): request for request in requests}.values():
            self.app.generator.check(request)
        images: list[Any] = []
        for shown in generate_all(self.app.generator, requests):
            changes: dict[Any, Any] = {self.status: shown.status}
            if len(shown.finished) > len(images):
                images += [_opened(image.path) for image in shown.finished[len(images) :]]
                partial = xy.sheet(images, x, y)
                partial.thumbnail((MOST_SHOWN, MOST_SHOWN))
                changes[self.sheet] = self.app.served_files.save(partial)
            yield changes | (self._finished(shown.finished, settings, images, (x, y)) if shown.last else {})

    def _finished(
        self, finished: list[GeneratedImage], settings: Settings, images: list[Any], axes: tuple[xy.Axis, xy.Axis]
    ) -> dict[Any, Any]:
        """The grid as one image, saved with its settings and axes."""
        for remark in dict.fromkeys(remark for image in finished for remark in image.remarks):
            gr.Warning(html.escape(remark), duration=None)
        sheet = xy.sheet(images, *axes)
        varied = {axis.name: list(axis.values) for axis in axes if axis.name != xy.NOT_VARIED}
        chunks = png_settings.text_chunks(settings, sheet.size, {}, varied)
        saved = self.app.store.save_image(sheet, chunks, settings.seed)
        return {self.status: bar(f"{len(images)} images", 1, "done"), self.sheet: self.app.served_files.copy(saved)}


def _opened(path: Any) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.copy()
