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

HELP = """Draws one picture for each pair of values, with everything else as in the tab *Draw*.
Values have commas between them; whole numbers also go as `1-5` or `10-50:10`. For *prompt part* the first value is a
piece of the prompt, which the others take the place of, as in `cat, dog, fish`. *checkpoint* takes names of the run's
checkpoints, and `finished`; *run* takes names of runs."""


class XYTab:
    """Builds the tab inside the current `gr.Blocks`; it draws with the fields of `draw`."""

    def __init__(self, app: App, draw: GenerateTab):
        self.app, self.draw = app, draw
        gr.Markdown(HELP, elem_classes="hint")
        kinds = [xy.NOT_VARIED, *xy.KINDS]
        with gr.Row():
            x_name = gr.Dropdown(kinds, value="seed", label="Across", min_width=120)
            x_values = gr.Textbox("0-3", label="Values across", scale=3)
        with gr.Row():
            y_name = gr.Dropdown(kinds, value="guidance", label="Down", min_width=120)
            y_values = gr.Textbox("1, 3, 6", label="Values down", scale=3)
        with gr.Row():
            go = gr.Button("Draw the grid", variant="primary", scale=3, elem_id="draw-grid")
            stop = gr.Button("Cancel", variant="stop", scale=1)
        self.status = gr.HTML(bar("ready"))
        sheet = gr.Image(
            label="Grid", format="png", type="filepath", interactive=False, elem_id="sheet", buttons=["download"]
        )
        fields = {"x_name": x_name, "x_values": x_values, "y_name": y_name, "y_values": y_values, **draw.fields}
        go.click(None, None, self.status, js=WAITING, **quiet_event(self.status))
        drawing = go.click(
            show_errors(with_field_parameters(self.generate, fields)), list(fields.values()), [self.status, sheet],
            api_name="xy", preprocess=False, concurrency_limit=MAX_PENDING, concurrency_id="generate",
            show_progress="hidden",
        )  # fmt: skip
        drawing.failure(lambda: ended_outputs()[0], None, self.status, queue=False, **quiet_event(self.status))
        stop.click(None, cancels=drawing)

    def generate(self, given: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """Draws cell after cell, once it is known that all of them can be, and shows how far it is."""
        x, y = (xy.parse_axis(given[f"{side}_name"], given[f"{side}_values"]) for side in "xy")
        settings = forms.settings_of(given, self.app.store, self.app.served_files.path)
        asked = xy.cells(settings, x, y)
        yield bar("the values are checked", 0), gr.skip()
        for one in {replace(one, seed=settings.seed): one for one in asked}.values():
            self.app.generator.check(one)
        pictures: list[Any] = []
        remarks: dict[str, None] = {}
        for one in asked:
            with closing(self.app.generator.generate(one)) as drawing:
                for event in drawing:
                    if isinstance(event, Waiting):
                        yield bar("others' images are being generated", len(pictures) / len(asked)), gr.skip()
                    elif isinstance(event, Progress):
                        share = (len(pictures) + event.step / event.steps) / len(asked)
                        yield bar(f"picture {len(pictures) + 1} of {len(asked)}", share), gr.skip()
                    else:
                        pictures.append(_opened(event[0].path))
                        remarks |= dict.fromkeys(event[0].remarks)
        for remark in remarks:
            gr.Warning(html.escape(remark), duration=None)
        yield bar(f"{len(asked)} pictures", 1, "done"), self._sheet(settings, pictures, x, y)

    def _sheet(self, settings: Settings, pictures: list[Any], x: xy.Axis, y: xy.Axis) -> Any:
        """The grid as one picture, kept with its settings and its axes."""
        sheet = xy.sheet(pictures, x, y)
        chunks = png_settings.text_chunks(
            settings, sheet.size, {}, {axis.name: list(axis.values) for axis in (x, y) if axis.name != xy.NOT_VARIED}
        )
        return gr.update(value=self.app.served_files.copy(self.app.store.save_image(sheet, chunks, settings.seed)))


def _opened(path: Any) -> Any:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.copy()
