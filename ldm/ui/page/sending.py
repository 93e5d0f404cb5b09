"""Images that are sent on: from a gallery to the fields of a mode, and beyond their edges for outpainting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.generating import painting
from ldm.ui.generating.settings import Settings, check_image_size
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import quiet_event, selected_file

# The mode that an image is sent to, the field there, and the button's text.
TARGETS = (
    ("image", "image", "→ Image to image"),
    ("inpaint", "editor", "→ Inpaint"),
    ("variations", "vary", "→ Variations"),
)
SIDES = ("left", "right", "top", "bottom")
MOST_ADDED = 4096  # pixels on a side


def send_buttons(prefix: str) -> list[gr.Button]:
    """A button for each of TARGETS."""
    return [gr.Button(text, size="sm", min_width=90, elem_id=f"{prefix}-{mode}") for mode, _, text in TARGETS]


class Sending:
    """Sends images to the `fields` of the tab that generates: opens it in `tabs`, and the mode in `modes`."""

    def __init__(self, app: App, fields: Mapping[str, Any], modes: gr.Tabs, tabs: gr.Tabs):
        self.app, self.fields, self.modes, self.tabs = app, fields, modes, tabs

    def wire(self, buttons: list[gr.Button], gallery: gr.Gallery, files: gr.State) -> None:
        """Lets `send_buttons` send the image that is selected in a gallery of `files`."""
        for button, (mode, target, _) in zip(buttons, TARGETS, strict=True):
            send = show_errors(self.send_to_editor if target == "editor" else self.send)
            opened, quietly = [self.tabs, self.modes, self.fields["mode"]], quiet_event(self.fields["mode"])
            # The image editor takes an image only once it is visible.
            open_there = button.click(_open(mode), None, opened, **quietly)
            open_there.then(send, [gallery, files], self.fields[target], **quietly)

    def send(self, gallery: gr.Gallery, files: list[str]) -> Any:
        """The selected image, for an image field."""
        return self.app.served_files.copy(Path(selected_file(gallery, files)))

    def send_to_editor(self, gallery: gr.Gallery, files: list[str]) -> Any:
        """The selected image, for the image editor."""
        return shown_canvas(painting.canvas(Path(selected_file(gallery, files))))

    def extend(self, run: str, editor: Any, width: float | None, height: float | None, *edges: float) -> list[Any]:
        """The image editor with new pixels at the image's edges, masked, and the size with them."""
        if not editor or editor["background"] is None:
            raise UserError("outpainting needs an initial image: upload one into the editor.")
        if not any(edges) or not all(0 <= (edge or 0) <= MOST_ADDED for edge in edges):
            raise UserError(f"give the pixels to add on at least one side, up to {MOST_ADDED} each.")
        about = self.app.models.traits(run)
        size = int(width or about.width), int(height or about.height)
        image = painting.undo_enlarging(editor["background"].convert("RGB"), size)
        added = dict(zip(SIDES, (int(edge or 0) for edge in edges), strict=True))
        wide, high = image.width + added["left"] + added["right"], image.height + added["top"] + added["bottom"]
        check_image_size(Settings(width=wide, height=high), about.width, about.height)
        mask = painting.painted_mask(layer for layer in editor["layers"] if layer is not None)
        image, mask = painting.extended(image, mask, added)
        return [shown_canvas(painting.canvas(image, mask)), *image.size]


def shown_canvas(canvas: Any) -> Any:
    """What the image editor shows of a canvas, as its value."""
    return canvas if canvas is None else {**canvas, "composite": canvas["background"]}


def _open(mode: str) -> Any:
    """A function that opens the tab that generates, and in it the tab of a mode, and sets the field `mode`."""
    return lambda: (gr.Tabs(selected="generate"), gr.Tabs(selected=mode), mode)
