"""What a checkpoint declares in addition to its weights: metadata, a trainer's settings, and tables inside them."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files import beside_checkpoint
from ldm.interop.files.values import is_off, table, word

# entries of a pickled checkpoint for weights and the state of its training
NOT_SETTINGS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
NO_SETTINGS = (  # sections that aren't about the model itself
    "loss", "low_scale", "scheduler_config", "optimizer", "data", "trainer", "logger", "callbacks", "lightning",
)  # fmt: skip
_OTHERS = ("unet", "cond_stage", "text_encoder", "ddconfig", *NO_SETTINGS)  # nor of the latents or of the noise
_WORKFLOWS = ("prompt", "workflow", "sd_merge_recipe", "sd_merge_models")  # how an image or a file was made
_DEEPEST = 100
_SIGNIFICANT = re.compile(r"scal\w*_|shift_|latents?_|parameteri|prediction")
_YAML = re.compile(
    r"^[ ]*(scal\w*_(factor|config)|scale_by_std|shift_factor|latents?_\w+|parameteri\w+|linear_\w+|\w+_stage_config"
    r"|unet_config|num_head\w+|image_size|conditioning_key|given_betas|use_ema):\s",
    re.MULTILINE,
)


def of_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """Metadata in which tables and lists written as JSON have been parsed."""
    return {key: _unfolded(key, text, where) for key, text in metadata.items() if key not in _WORKFLOWS}


def refuse_quantised(metadata: Mapping[str, str], where: str) -> None:
    """Raises UserError if a file's metadata declare that weights are quantised with scales or tables."""
    declared = [key for key, value in metadata.items() if "quanti" in word(key) and not is_off(value)]
    if declared:
        raise UserError(
            f"{where}: its metadata have {declared[0][:60]}, which isn't supported: get unquantised weights."
        )


def each_setting(
    declared: Mapping[str, Any], passed_over: tuple[str, ...] = _OTHERS, path: str = "", depth: int = 0
) -> Iterator[tuple[str, str, Any]]:
    """Every setting with a value, as its path, its own name in plain words, and the value.

    Sections with one of the words `passed_over` in their names are skipped. By default these are sections that aren't
    about latents and noise.
    """
    for key, value in declared.items():
        here = f"{path}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            value = {str(i): one for i, one in enumerate(value) if isinstance(one, Mapping)}
        if not isinstance(value, Mapping):
            if value is not None:
                yield here, word(str(key)), value
        elif depth < _DEEPEST and not _is_passed_over(str(key), passed_over):
            yield from each_setting(value, passed_over, f"{here}.", depth + 1)


def _is_passed_over(key: str, passed_over: tuple[str, ...]) -> bool:
    """Whether a section is skipped; a file of settings never is, whatever its name."""
    return not key.endswith((".yaml", ".yml")) and any(other in word(key) for other in passed_over)


def _unfolded(key: str, value: Any, where: str, depth: int = 0) -> Any:
    """A value with tables written as text parsed, at any depth. Raises UserError where they are nested too deeply."""
    if depth > _DEEPEST:
        raise UserError(f"{where}, {key} is nested too deeply to be read: download the file again.")
    if isinstance(value, dict):
        return {name: _unfolded(f"{key}.{name}", one, where, depth + 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_unfolded(key, one, where, depth + 1) for one in value]
    if not isinstance(value, str):
        return value
    content = _content(key, value, where)
    return content if content is value else _unfolded(key, content, where, depth + 1)


def _content(key: str, text: str, where: str) -> Any:
    """The table or list that a text holds, in JSON or, if it is about latents or noise, in YAML; else the text
    itself."""
    start = text.lstrip()[:1]
    try:
        if start == "{":
            return table(text, f"{where}, {key}")
        if start in ("[", '"'):
            return json.loads(text)
    except (ValueError, RecursionError, UserError) as error:  # also of text that begins with a brace
        if "twice" in str(error):
            raise
        if (isinstance(error, RecursionError) or "RecursionError" in str(error)) and _SIGNIFICANT.search(text):
            raise UserError(f"{where}, {key} is nested too deeply to be read: download the file again.") from None
        return text
    content = beside_checkpoint.parsed(text, f"{where}, {key}") if _YAML.search(text) else text
    return content if isinstance(content, dict) else text
