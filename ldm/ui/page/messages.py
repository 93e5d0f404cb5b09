"""Mistakes and failures as messages on the page."""

import functools
import html
import inspect
import logging
import re
from collections.abc import Callable
from typing import Any

import gradio as gr
import torch

from ldm.common.errors import UserError

MOST = 600  # letters of a message: what was sent may be much longer
log = logging.getLogger(__name__)
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":]+/)+")  # of a path, before its last name


def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, or generator function, whose errors come as messages: a user's mistake as it is, a failure in short,
    with its traceback in the terminal alone."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise error_message(error) from error

        return stream

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise error_message(error) from error

    return call


def error_message(error: Exception) -> gr.Error:
    """An error as the page shows it, and as a program gets it."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        return gr.Error(_sentence(str(error)), title="That doesn't work", duration=None, print_exception=False)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return gr.Error("Out of memory: draw fewer or smaller pictures at a time.", print_exception=False)
    log.error("the page failed", exc_info=error)
    said = f"{type(error).__name__}: {_FOLDERS.sub('', str(error))}. The terminal has more."
    return gr.Error(_sentence(said), title="Failed", print_exception=False)


def _sentence(text: str) -> str:
    short = text if len(text) <= MOST else f"{text[:MOST]}..."
    return html.escape(short[:1].upper() + short[1:], quote=False)
