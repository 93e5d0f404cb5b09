"""Small parts that the tabs share."""

import html
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ldm.ui.generate import enlarged

SHOWN = 320  # pixels that a small picture is enlarged to in the preview


def named(method: Any, fields: Mapping[str, Any]) -> Any:
    """A generator method of (request, *values) as a function with a parameter for each field, as the API lists them;
    what a field shows at first is the default."""

    def function(request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from method(request, *values)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=field.value) for name, field in fields.items()]
    request = inspect.Parameter("request", kind, annotation=gr.Request)
    function.__signature__ = inspect.Signature([request, *parameters])  # type: ignore[attr-defined]
    return function


def bar(text: str, share: float = 0.0, state: str = "") -> str:
    """A line of progress."""
    width = round(100 * min(max(share, 0.0), 1.0))
    return f'<div class="ldm-bar {state}"><div style="width:{width}%"></div><span>{html.escape(text)}</span></div>'


def big(picture: Any) -> Any:
    """A small picture enlarged, each pixel to a square."""
    return enlarged(picture, max(1, SHOWN // picture.height))


def to_mode(mode: str) -> Any:
    return lambda: (gr.Tabs(selected=mode), mode)
