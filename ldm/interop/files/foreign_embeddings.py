"""Embeddings of words (textual inversion) out of other tools, which aren't read: known by what their files hold."""

import re
from collections.abc import Iterable

_NAMES = ("emb_params", "string_to_param", "clip_l", "clip_g")  # of A1111, ComfyUI, kohya's tools


def embedding_in(names: Iterable[str]) -> str:
    """What a file with these entries holds, and what to do about it; empty where it isn't an embedding."""
    names = list(names)
    is_diffusers = 0 < len(names) < 3 and all(re.fullmatch(r"<.+>", name) for name in names)
    if not is_diffusers and not set(names) & set(_NAMES):
        return ""
    return (
        "an embedding of a word (textual inversion), which isn't read out of other tools' files: train the word on the "
        "model by finetune=textual_inversion"
    )
