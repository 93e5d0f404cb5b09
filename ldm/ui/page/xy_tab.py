"""The tab of X/Y grids."""

import html
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gradio as gr

from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating import png_settings, xy
from ldm.ui.generating.image_generator import MAX_PENDING, Progress, Waiting
from ldm.ui.generating.settings import Settings
from ldm.ui.page.generate_tab import GenerateTab
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import WAITING, bar, ended_outputs, quiet_event, with_field_parameters

HELP = """Generates one image for each pair of values, with all other settings of the tab *Generate*.
Separate values by commas; whole numbers may also be given as `1-5` or `10-50:10`. For *prompt part*, the first value is
a part of the prompt that the others replace, as in `cat, dog, fish`. *checkpoint* takes the names of the run's
checkpoints and `finished`, *run* the names of runs."""


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
        sheet = gr.Image(
            label="Grid", format="png", type="filepath", interactive=False, elem_id="sheet", buttons=["download"]
        )
        fields = {"x_name": x_name, "x_values": x_values, "y_name": y_name, "y_values": y_values, **generate.fields}
        go.click(None, None, self.status, js=WAITING, **quiet_event(self.status))
        generating = go.click(
            show_errors(with_field_parameters(self.generate, fields)), list(fields.values()), [self.status, sheet],
            api_name="xy", preprocess=False, concurrency_limit=MAX_PENDING, concurrency_id="generate",
            show_progress="hidden",
        )  # fmt: skip
        generating.failure(lambda: ended_outputs()[0], None, self.status, queue=False, **quiet_event(self.status))
        stop.click(None, cancels=generating)

    def generate(self, given: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """Generates cell after cell, after a check of them all, and yields the progress and at last the sheet."""
        x, y = (xy.parse_axis(given[f"{side}_name"], given[f"{side}_values"]) for side in "xy")
        settings = forms.settings_of(given, self.app.store, self.app.served_files.path)
        requests = xy.cells(settings, x, y)
        yield bar("Checking the values…", 0), gr.skip()
        for request in {replace(request, seed=settings.seed): request for request in requests}.values():
            self.app.generator.check(request)
        images: list[Any] = []
        remarks: dict[str, None] = {}
        for request in requests:
            with closing(self.app.generator.generate(request)) as generating:
                for event in generating:
                    if isinstance(event, Waiting):
                        yield bar("Waiting for other requests…", len(images) / len(requests)), gr.skip()
                    elif isinstance(event, Progress):
                        share = (len(images) + event.step / event.steps) / len(requests)
                        yield bar(f"Image {len(images) + 1} of {len(requests)}", share), gr.skip()
                    else:
                        images.append(_opened(event[0].path))
                        remarks |= dict.fromkeys(event[0].remarks)
        for remark in remarks:
            gr.Warning(html.escape(remark), duration=None)
        yield bar(f"{len(requests)} images", 1, "done"), self._sheet(settings, images, x, y)

    def _sheet(self, settings: Settings, images: list[Any], x: xy.Axis, y: xy.Axis) -> Any:
        """The grid as one image, saved with its settings and axes."""
        sheet = xy.sheet(images, x, y)
        chunks = png_settings.text_chunks(
            settings, sheet.size, {}, {axis.name: list(axis.values) for axis in (x, y) if axis.name != xy.NOT_VARIED}
        )
        return gr.update(value=self.app.served_files.copy(self.app.store.save_image(sheet, chunks, settings.seed)))


def _opened(path: Any) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.copy()
