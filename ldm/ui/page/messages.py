"""Errors as messages on the page."""

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

MAX_LENGTH = 600  # characters of a message, which may quote much longer values
log = logging.getLogger(__name__)
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":]+/)+")  # of a path, without its last name


def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, or generator function, with its errors as messages: a UserError in full, another error in brief, with
    its traceback in the terminal."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Any:
            """`function`'s values, with an error shown as a message on the page."""
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise error_message(error) from error

        return stream

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        """`function`'s result, with an error shown as a message on the page."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise error_message(error) from error

    return call


def error_message(error: Exception) -> gr.Error:
    """The message that the page shows, or a program gets, for an error."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        return gr.Error(_sentence(str(error)), title="Failed", duration=None, print_exception=False)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return gr.Error(
            "Out of memory: generate fewer or smaller images at a time.", title="Failed", print_exception=False
        )
    log.error("the page failed", exc_info=error)
    text = f"{type(error).__name__}: {_FOLDERS.sub('', str(error))}. See the terminal for details."
    return gr.Error(_sentence(text), title="Failed", print_exception=False)


def _sentence(text: str) -> str:
    short = text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."
    return html.escape(short[:1].upper() + short[1:], quote=False)
