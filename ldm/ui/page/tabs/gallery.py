"""The tab of all generated images."""

from typing import Any

import gradio as gr

from ldm.ui.app import App
from ldm.ui.page.messages import show_errors
from ldm.ui.page.tabs.generate import GenerateTab
from ldm.ui.page.widgets import quiet_event, selected_file, settings_of_clicked


class GalleryTab:
    """Builds the tab inside the current `gr.Blocks`; it fills the fields of the tab `generate` with settings."""

    def __init__(self, app: App, generate: GenerateTab, tabs: gr.Tabs):
        self.app, self.generate = app, generate
        files = gr.State([])
        with gr.Row():
            look = gr.Button("↻ Refresh", size="sm", scale=0, min_width=100)
            use = gr.Button("Use these settings", size="sm", scale=0, min_width=160, variant="primary")
            gr.Markdown(f"Saved in `{app.store.folder / 'pictures'}`, each PNG with its settings.", elem_classes="hint")
        with gr.Row():
            gallery = gr.Gallery(
                label="Newest first",
                columns=8,
                object_fit="contain",
                type="filepath",
                format="png",
                height=560,
                elem_id="all-images",
                interactive=False,
            )
            about = gr.JSON(label="Settings", min_width=260)
        quietly = quiet_event(about)
        self.look = show_errors(self._look)
        self.outputs = [gallery, files]
        look.click(self.look, None, self.outputs, **quietly)
        gallery.select(show_errors(self.pick), files, about, **quietly)
        source = [gallery, files]
        used = use.click(
            show_errors(self.use), source, [*generate.fields.values(), generate.modes, generate.about], **quietly
        )
        opened = used.success(lambda: gr.Tabs(selected="generate"), None, tabs, **quietly)
        opened.then(show_errors(self.refill), source, generate.fields["editor"], **quietly)

    def _look(self) -> tuple[Any, list[str]]:
        found = self.app.store.recent_images()
        return gr.update(value=[self.app.served_files.copy(path) for path in found], selected_index=None), list(
            map(str, found)
        )

    def pick(self, files: list[str], event: gr.EventData) -> Any:
        """The settings of the image that was clicked."""
        return settings_of_clicked(files, event)

    def use(self, gallery: gr.Gallery, files: list[str]) -> list[Any]:
        """The fields filled with the settings of the selected image."""
        return self.generate.restore(selected_file(gallery, files))

    def refill(self, gallery: gr.Gallery, files: list[str]) -> Any:
        """The image editor filled likewise, once it is visible."""
        return self.generate.refill(selected_file(gallery, files))
