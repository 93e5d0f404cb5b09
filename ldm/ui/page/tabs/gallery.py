"""The tab of all generated images: search, reuse, delete."""

import itertools
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.ui.app import App
from ldm.ui.generating.png_settings import searchable
from ldm.ui.page.messages import show_errors
from ldm.ui.page.sending import send_buttons
from ldm.ui.page.tabs.generate import GenerateTab
from ldm.ui.page.widgets import quiet_event, selected_file, settings_of_clicked

PER_PAGE = 48


class GalleryTab:
    """Builds the tab inside the current `gr.Blocks`; it fills the fields of the tab `generate` with settings."""

    def __init__(self, app: App, generate: GenerateTab, tabs: gr.Tabs):
        self.app, self.generate, self.tabs = app, generate, tabs
        self.files, self.page = gr.State([]), gr.State(0)
        with gr.Row():
            self.query = gr.Textbox(
                label="Search", placeholder="words of the prompt, a sampler, a run, a seed", scale=3, elem_id="search"
            )
            self.newer = gr.Button("← Newer", size="sm", scale=0, min_width=90, elem_id="newer")
            self.older = gr.Button("Older →", size="sm", scale=0, min_width=90, elem_id="older")
            self.refresh = gr.Button("↻ Refresh", size="sm", scale=0, min_width=90)
        with gr.Row():
            self.use = gr.Button("Use these settings", size="sm", min_width=90, variant="primary", elem_id="use")
            self.send_buttons = send_buttons("send")
            self.delete = gr.Button("Delete", size="sm", min_width=90, variant="stop", elem_id="delete")
        with gr.Row():
            self.gallery = gr.Gallery(
                show_label=False, columns=6, object_fit="contain", type="filepath", format="png", scale=3,
                elem_id="all-images", interactive=False,
            )  # fmt: skip
            self.about = gr.JSON(label="Settings", min_width=260, scale=1)
        gr.Markdown(f"Saved in `{app.store.folder / 'pictures'}`, each PNG with its settings.", elem_classes="hint")
        self.outputs = [self.gallery, self.files, self.page, self.newer, self.older]
        self.look = show_errors(self._look)
        self._events()

    def _events(self) -> None:
        quietly, source = quiet_event(self.about), [self.gallery, self.files]
        for button, step in ((self.newer, -1), (self.older, 1), (self.refresh, 0)):
            turn = show_errors(lambda query, page, step=step: self._look(query, page + step))
            button.click(turn, [self.query, self.page], self.outputs, **quietly)
        self.query.change(self.look, self.query, self.outputs, trigger_mode="always_last", **quietly)
        deleted = self.delete.click(show_errors(self.remove), source, None, **quietly)
        deleted.success(self.look, [self.query, self.page], self.outputs, **quietly)
        self.gallery.select(show_errors(settings_of_clicked_in), self.files, self.about, **quietly)
        filled = [*self.generate.fields.values(), self.generate.modes, self.generate.about]
        used = self.use.click(show_errors(self.restore), source, filled, **quietly)
        opened = used.success(lambda: gr.Tabs(selected="generate"), None, self.tabs, **quietly)
        opened.then(show_errors(self.refill), source, self.generate.fields["editor"], **quietly)
        self.generate.sending.wire(self.send_buttons, self.gallery, self.files)

    def _look(self, query: str = "", page: int = 0) -> list[Any]:
        """A page of the images with all words of `query` in their settings, newest first."""
        words, page = (query or "").lower().split(), max(0, page)
        found = (path for path in self.app.store.images() if all(word in searchable(path) for word in words))
        shown = list(itertools.islice(found, page * PER_PAGE, (page + 1) * PER_PAGE + 1))
        files = shown[:PER_PAGE]
        copies = [self.app.served_files.copy(path) for path in files]
        update = gr.update(value=copies, selected_index=None)
        turns = [gr.update(interactive=page > 0), gr.update(interactive=len(shown) > PER_PAGE)]
        return [update, list(map(str, files)), page, *turns]

    def remove(self, gallery: gr.Gallery, files: list[str]) -> None:
        """Moves the selected image to the folder of deleted ones."""
        moved = self.app.store.delete(Path(selected_file(gallery, files, or_first=False)))
        gr.Info(f"Moved to {moved.parent.parent.name}/{moved.parent.name}/{moved.name}.")

    def restore(self, gallery: gr.Gallery, files: list[str]) -> list[Any]:
        """The fields filled with the settings of the selected image."""
        return self.generate.restore(selected_file(gallery, files))

    def refill(self, gallery: gr.Gallery, files: list[str]) -> Any:
        """The image editor filled likewise, once it is visible."""
        return self.generate.refill(selected_file(gallery, files))


def settings_of_clicked_in(files: list[str], event: gr.EventData) -> Any:
    """The settings of the image that was clicked."""
    return settings_of_clicked(files, event)
