"""Checks of the values that are sent to the page, before they reach the functions behind the fields."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.ui.page.messages import error_message

MAX_VALUES = 50_000  # in one request; a gallery of 1024 images has about 15,000
log = logging.getLogger(__name__)


class CheckedBlocks(gr.Blocks):
    """Blocks that answer invalid values with a sentence. gradio's own answers are tracebacks for developers, and
    clients of the API get none."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As gradio's, with one sentence on a value that doesn't fit its field."""
        if block_fn.fn is None:  # its work is the browser's
            raise error_message(UserError("the page has no such function."))
        try:
            _check_size(inputs)
            inputs = clean_input(inputs)
            _check_count(block_fn, inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except InvalidPathError:
            raise error_message(UserError("a file has to be uploaded: a path isn't read.")) from None
        except UserError as error:
            raise error_message(error) from None
        except Exception as error:
            log.info("an invalid value was sent", exc_info=error)
            raise error_message(UserError(_misfit(block_fn.inputs, inputs))) from None


def _check_size(value: Any) -> None:
    """Raises UserError for more than MAX_VALUES values at any depth: gradio keeps what a visitor has sent, and empty
    lists take twenty times the memory that they take in a request."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        inner = one if isinstance(one, (list, tuple)) else one.values() if isinstance(one, dict) else ()
        count += len(inner)
        if count > MAX_VALUES:
            raise UserError(f"the request has more than {MAX_VALUES:,} values: send fewer.")
        left.extend(inner)


def clean_input(value: Any) -> Any:
    """What was sent, with lone surrogates replaced, since messages and PNGs are in UTF-8. Raises UserError for a folder
    in place of a file, which gradio would count among its files."""
    if isinstance(value, str):
        return annotations.replace_surrogates(value)
    if isinstance(value, (list, tuple)):
        return [clean_input(one) for one in value]
    if not isinstance(value, dict):
        return value
    value = {
        annotations.replace_surrogates(key) if isinstance(key, str) else key: clean_input(one)
        for key, one in value.items()
    }
    if isinstance(value.get("path"), str) and Path(value["path"]).is_dir():
        raise UserError("a file has to be uploaded: a folder isn't read.")
    return value


def _check_count(block_fn: Any, inputs: Sequence[Any]) -> None:
    most = len(block_fn.inputs)
    if len(inputs) < most or (len(inputs) > most and block_fn.api_visibility == "public"):
        raise UserError(f"/{block_fn.api_name} takes {most} value{'s' * (most != 1)}, not {len(inputs)}.")


def _misfit(fields: Sequence[Any], inputs: Sequence[Any]) -> str:
    """A sentence that names the first field with an invalid value."""
    for field, value in zip(fields, inputs, strict=False):
        if not _fits(field, value):
            return (
                f"the field '{field.label or type(field).__name__}' can't have the value {annotations.as_typed(value)}."
            )
    return "a value is of a wrong type for its field."


def _fits(field: Any, value: Any) -> bool:
    try:
        if value is not None and getattr(field, "data_model", None):
            value = field.data_model.model_validate(value, context={"validate_meta": True})
        field.preprocess(value)
    except Exception:
        return False
    return True
