"""What the tabs share: options of events, forms that the browser keeps, choices of images."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import gradio as gr

from ldm.ui.generating.png_settings import read_settings


def with_field_parameters(method: Any, fields: Mapping[str, Any]) -> Any:
    """Turns a generator method that takes a mapping into a function with one parameter per field, as the API lists
    them. A field's first value is its parameter's default."""

    def function(*values: Any) -> Iterator[Any]:
        """`method` called with the values by field."""
        yield from method(dict(zip(fields, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=field.value) for name, field in fields.items()]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def quiet_event(on: Any) -> dict[str, Any]:
    """Options of an internal event, which isn't in the API and shows no spinner.

    `on` is the component that would show one. gradio reads it with all its content again at every later event, so it
    has to be small.
    """
    return {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": on}


def browser_form(name: str) -> gr.BrowserState:
    """A form that the visitor's browser keeps. Its `secret` is public: a new one at each start would lose the form."""
    return gr.BrowserState({}, storage_key=f"ldm.{name}", secret="ldm")


def settings_of_clicked(files: list[str], event: gr.EventData | None) -> Any:
    """The settings in the file that was clicked in a gallery. The event comes as the browser sent it, so an index
    without a file, from a gallery that has changed or from a program, changes nothing."""
    sent = getattr(event, "_data", None)
    index = sent.get("index") if isinstance(sent, Mapping) else None
    return read_settings(files[index])[0].as_dict() if _is_index(index, files) else gr.skip()


def selected_file(gallery: gr.Gallery, files: list[str], or_first: bool = True) -> str:
    """The file of the image that is selected in the gallery, or else of the first."""
    if not files:
        raise gr.Error("Generate an image first.", title="No image", print_exception=False)
    index = getattr(gallery, "selected_index", None)
    if _is_index(index, files):
        return files[index]
    if not or_first:
        raise gr.Error("Click an image first.", title="No image", print_exception=False)
    if len(files) > 1:
        gr.Info("The first image is used: click another to use that.")
    return files[0]


def _is_index(index: Any, files: list[str]) -> TypeGuard[int]:
    """Whether what a browser or a program sent is the index of one of the files."""
    return type(index) is int and 0 <= index < len(files)
