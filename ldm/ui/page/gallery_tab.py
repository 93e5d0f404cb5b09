"""The tab of all pictures that were drawn."""

from typing import Any

import gradio as gr

from ldm.ui.app import App
from ldm.ui.generating import png_settings
from ldm.ui.page.generate_tab import GenerateTab
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import quiet_event, selected_file


class GalleryTab:
    """Builds the tab inside the current `gr.Blocks`; it puts settings into the fields of `draw`."""

    def __init__(self, app: App, draw: GenerateTab, tabs: gr.Tabs):
        self.app, self.draw = app, draw
        files = gr.State([])
        with gr.Row():
            look = gr.Button("↻ Newest", size="sm", scale=0, min_width=100)
            use = gr.Button("Use these settings", size="sm", scale=0, min_width=160, variant="primary")
            gr.Markdown(
                f"Kept in `{app.store.folder / 'pictures'}`, each PNG with its settings in it.", elem_classes="hint"
            )
        with gr.Row():
            gallery = gr.Gallery(
                label="Newest first",
                columns=8,
                object_fit="contain",
                format="png",
                height=560,
                elem_id="all",
                interactive=False,
            )
            about = gr.JSON(label="Settings", min_width=260)
        quietly = quiet_event(about)
        self.look = show_errors(self._look)
        self.outputs = [gallery, files]
        look.click(self.look, None, self.outputs, **quietly)
        gallery.select(show_errors(self.pick), files, about, **quietly)
        source = [gallery, files]
        used = use.click(show_errors(self.use), source, [*draw.fields.values(), draw.modes, draw.about], **quietly)
        opened = used.success(lambda: gr.Tabs(selected="draw"), None, tabs, **quietly)
        opened.then(show_errors(self.refill), source, draw.fields["editor"], **quietly)

    def _look(self) -> tuple[Any, list[str]]:
        found = self.app.store.recent_images()
        return gr.update(value=[self.app.served_files.copy(path) for path in found], selected_index=None), list(
            map(str, found)
        )

    def pick(self, files: list[str], event: gr.SelectData) -> Any:
        return png_settings.read_settings(files[event.index])[0].as_dict() if event.index < len(files) else {}

    def use(self, gallery: gr.Gallery, files: list[str]) -> list[Any]:
        return self.draw.restore(selected_file(gallery, files))

    def refill(self, gallery: gr.Gallery, files: list[str]) -> Any:
        return self.draw.refill(selected_file(gallery, files))
