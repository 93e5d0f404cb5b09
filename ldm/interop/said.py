"""What a checkpoint says beside its weights: metadata, a trainer's settings, tables of settings within them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.errors import UserError
from ldm.interop.plain import table, word

# of a pickled checkpoint: weights and the state of a training
NOT_SETTINGS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
_OTHERS = (  # sections of settings that say nothing of the latents or of the noise
    "unet", "cond_stage", "loss", "low_scale", "scheduler_config", "optimizer", "data", "trainer", "logger",
    "callbacks", "lightning", "text_encoder", "ddconfig",
)  # fmt: skip
_WORKFLOWS = ("prompt", "workflow", "sd_merge_recipe", "sd_merge_models")  # how an image or a file was made
_DEEPEST = 100


def of_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """Metadata, with the tables and lists in JSON among them as such."""
    return {key: _unfolded(key, text, where) for key, text in metadata.items() if key not in _WORKFLOWS}


def leaves(said: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Every setting with a value: its path, its own name in plain words, the value."""
    for key, value in said.items():
        here = f"{path}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            value = {str(i): one for i, one in enumerate(value) if isinstance(one, Mapping)}
        if not isinstance(value, Mapping):
            if value is not None:
                yield here, word(str(key)), value
        elif depth < _DEEPEST and not any(other in word(str(key)) for other in _OTHERS):
            yield from leaves(value, f"{here}.", depth + 1)


def _unfolded(key: str, text: str, where: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text) if text.lstrip().startswith("[") else table(text, f"{where}, {key}")
    except (ValueError, RecursionError):
        return text
    except UserError as error:
        if "twice" in str(error):
            raise
        return text  # that begins with a brace
