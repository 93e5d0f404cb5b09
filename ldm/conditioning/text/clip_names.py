"""CLIP's text encoder under its two spellings.

Files have `text_model.` before the names of its modules; transformers itself dropped it from CLIPTextModel in 5.6. What
is written here has it, and what is read may have it or not.
"""

from collections.abc import Iterable

TEXT_MODEL = "text_model."
_ROOTS = ("embeddings.", "encoder.layers.", "final_layer_norm")


def canonical(name: str) -> str:
    """The name of a module or weight as files have it; other encoders' names stay as they are."""
    return TEXT_MODEL + name if name.startswith(_ROOTS) else name


def spellings(name: str) -> list[str]:
    """The name as files have it, and if there is one the other spelling."""
    full = canonical(name)
    return list(dict.fromkeys([full, full.removeprefix(TEXT_MODEL)]))


def installed(names: Iterable[str]) -> dict[str, str]:
    """{as files have it: as given} for names out of the installed library."""
    return {canonical(name): name for name in names}
