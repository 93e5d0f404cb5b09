"""The tab of all pictures that were drawn."""

from pathlib import Path
from typing import Any

import gradio as gr

from ldm.ui import png_settings
from ldm.ui.app import App
from ldm.ui.page_draw import DrawTab
from ldm.ui.tell import told


class PicturesTab:
    """Builds the tab inside the current `gr.Blocks`; it puts settings into the fields of `draw`."""

    def __init__(self, app: App, draw: DrawTab, tabs: gr.Tabs):
        self.app, self.draw = app, draw
        files, chosen = gr.State([]), gr.State(None)
        with gr.Row():
            look = gr.Button("↻ Newest", size="sm", scale=0, min_width=100)
            use = gr.Button("Use these settings", size="sm", scale=0, min_width=160, variant="primary")
            gr.Markdown(
                f"Kept in `{app.store.folder / 'pictures'}`, each PNG with its settings in it.", elem_classes="hint"
            )
        with gr.Row():
            gallery = gr.Gallery(
                label="Newest first", columns=8, object_fit="contain", format="png", height=560, elem_id="all"
            )
            about = gr.JSON(label="Settings", min_width=260)
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.look = told(self._look)
        self.outputs = [gallery, files]
        look.click(self.look, None, self.outputs, **private)
        gallery.select(told(self.pick), files, [chosen, about], **private)
        used = use.click(told(self.use), chosen, [*draw.fields.values(), draw.modes, draw.about], **private)
        opened = used.success(lambda: gr.Tabs(selected="draw"), None, tabs, **private)
        opened.then(told(draw.refill), chosen, draw.fields["editor"], **private)

    def _look(self) -> tuple[Any, list[str]]:
        found = self.app.store.pictures()
        return [self.app.shown.copy(path) for path in found], [str(path) for path in found]

    def pick(self, files: list[str], event: gr.SelectData) -> tuple[Any, Any]:
        file = files[event.index] if event.index < len(files) else None
        return file, png_settings.read(file)[0].as_dict() if file else {}

    def use(self, chosen: str | None) -> list[Any]:
        if chosen is None or not Path(chosen).is_file():
            raise gr.Error("Choose a picture first.", title="No picture", print_exception=False)
        return self.draw.restore(chosen)
