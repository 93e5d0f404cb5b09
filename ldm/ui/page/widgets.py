"""Small parts that the tabs share."""

import html
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ldm.ui.generating.image_generator import enlarge_pixels

SHOWN = 320  # pixels that a small picture is enlarged to in the preview


def with_field_parameters(method: Any, fields: Mapping[str, Any]) -> Any:
    """A generator method of a mapping as a function with a parameter for each field, as the API lists them; what a
    field shows at first is the default."""

    def function(*values: Any) -> Iterator[Any]:
        yield from method(dict(zip(fields, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=field.value) for name, field in fields.items()]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def quiet_event(on: Any) -> dict[str, Any]:
    """Options of an event of the page's own, without gradio's look of waiting. What waits is `on`: gradio reads what
    waits, with all that is in it, again at every later event."""
    return {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": on}


def bar(text: str, share: float = 0.0, state: str = "") -> str:
    """A line of progress."""
    width = round(100 * min(max(share, 0.0), 1.0))
    return f'<div class="ldm-bar {state}"><div style="width:{width}%"></div><span>{html.escape(text)}</span></div>'


WAITING = f"() => {json.dumps(bar('waiting'))}"  # by the browser: the server may be at others' requests


def enlarged_preview(picture: Any) -> Any:
    """A small picture enlarged, each pixel to a square."""
    return enlarge_pixels(picture, max(1, SHOWN // picture.height))


def open_mode(mode: str) -> Any:
    return lambda: (gr.Tabs(selected=mode), mode)


def ended_outputs() -> tuple[str, Any]:
    """The line and the preview of what was cancelled or has failed."""
    return bar("ended: nothing was drawn", 1, "stopped"), gr.update(visible=False)


def browser_form(name: str) -> gr.BrowserState:
    """What the visitor's own browser keeps of a form. `secret` is none: a new one at each start would lose the form."""
    return gr.BrowserState({}, storage_key=f"ldm.{name}", secret="ldm")


def selected_file(gallery: gr.Gallery, files: list[str]) -> str:
    """The file that the gallery shows large; the first where it shows none so."""
    if not files:
        raise gr.Error("Draw something first.", title="No picture", print_exception=False)
    index = getattr(gallery, "selected_index", None)
    if index is None and len(files) > 1:
        gr.Info("This is the first one: click another to take that.")
    return files[index or 0]
