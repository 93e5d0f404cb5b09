"""The two spellings of the names in CLIP's text encoder.

In files the names begin with `text_model.`; transformers dropped that from CLIPTextModel in 5.6. Files written here
have it, and files that are read may have it or not.
"""

from collections.abc import Iterable

TEXT_MODEL = "text_model."
_ROOTS = ("embeddings.", "encoder.layers.", "final_layer_norm")


def canonical(name: str) -> str:
    """The name of a module or weight as in files; names of other encoders stay as they are."""
    return TEXT_MODEL + name if name.startswith(_ROOTS) else name


def spellings(name: str) -> list[str]:
    """The name as in files, followed by its other spelling if there is one."""
    full = canonical(name)
    return list(dict.fromkeys([full, full.removeprefix(TEXT_MODEL)]))


def installed(names: Iterable[str]) -> dict[str, str]:
    """The names in the installed library, by their names in files."""
    return {canonical(name): name for name in names}
