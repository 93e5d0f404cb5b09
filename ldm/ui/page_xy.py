"""The tab of X/Y grids."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ldm.ui import form as forms
from ldm.ui import png_settings, xy
from ldm.ui.app import App
from ldm.ui.generate import Cancelled, Progress
from ldm.ui.page_draw import DrawTab
from ldm.ui.page_parts import bar, named
from ldm.ui.tell import told

HELP = """Draws one picture for each pair of values, with everything else as in the tab *Draw*.
Values have commas between them; whole numbers also go as `1-5` or `10-50:10`. For *prompt part* the first value is a
piece of the prompt, which the others take the place of, as in `cat, dog, fish`. *checkpoint* takes names of the run's
checkpoints, and `finished`; *run* takes names of runs."""


class XYTab:
    """Builds the tab inside the current `gr.Blocks`; it draws with the fields of `draw`."""

    def __init__(self, app: App, draw: DrawTab):
        self.app, self.draw = app, draw
        gr.Markdown(HELP, elem_classes="hint")
        kinds = [xy.NOTHING, *xy.KINDS]
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
        go.click(
            told(named(self.generate, fields)), list(fields.values()), [self.status, sheet],
            api_name="xy", concurrency_limit=1, concurrency_id="draw", show_progress="hidden",
        )  # fmt: skip
        stop.click(told(draw.cancel), None, self.status, queue=False, api_visibility="private", show_progress="hidden")

    def generate(
        self, request: gr.Request, x_name: str, x_values: str, y_name: str, y_values: str, *values: Any
    ) -> Iterator[tuple[Any, Any]]:
        """Draws cell after cell, and shows the sheet as it fills."""
        given = dict(zip(self.draw.fields, values, strict=True))
        settings = forms.settings_of(given, self.app.store)
        x, y = xy.axis(x_name, x_values), xy.axis(y_name, y_values)
        asked = xy.cells(settings, x, y)
        cancel = self.app.cancel_of(request.session_hash)
        pictures: list[Any] = []
        try:
            for i, one in enumerate(asked):
                for event in self.app.painter.draw(one, cancel):
                    if isinstance(event, Progress):
                        share = (i + event.step / event.steps) / len(asked)
                        yield bar(f"picture {i + 1} of {len(asked)}", share), gr.skip()
                    else:
                        pictures.append(_opened(event[0].path))
        except Cancelled:
            yield (
                bar(f"cancelled after {len(pictures)} of {len(asked)} pictures", len(pictures) / len(asked), "stopped"),
                gr.skip(),
            )
            return
        chunks = png_settings.chunks(settings, pictures[0].size, {})
        path = self.app.store.save_picture(xy.sheet(pictures, x, y), chunks, settings.seed)
        yield bar(f"{len(asked)} pictures", 1, "done"), gr.update(value=self.app.shown.copy(path))


def _opened(path: Any) -> Any:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.copy()
