"""Embeddings of words (textual inversion) from other tools, which aren't supported: recognised by the contents of their
files."""

import re
from collections.abc import Iterable

_NAMES = ("emb_params", "string_to_param", "clip_l", "clip_g")  # of A1111, ComfyUI, kohya's tools


def embedding_in(names: Iterable[str]) -> str:
    """What a file with these entries holds, and what to do instead; empty if it isn't an embedding."""
    names = list(names)
    is_diffusers = 0 < len(names) < 3 and all(re.fullmatch(r"<.+>", name) for name in names)
    if not is_diffusers and not set(names) & set(_NAMES):
        return ""
    return (
        "an embedding of a word (textual inversion), which can't be read from other tools' files: train the word on "
        "the model with finetune=textual_inversion"
    )
