"""Files in the folder of a diffusers pipeline that its index doesn't name: adapters, embeddings, parts."""

import logging
from collections.abc import Collection
from pathlib import Path

from ldm.interop.files.foreign_embeddings import embedding_in

log = logging.getLogger("ldm")
_PATTERNS = ("adapter_config.json", "adapter_model.*", "*lora_weights.*", "learned_embeds*")
_MOST = 6


def warn_of_unread(folder: Path, parts: Collection[str]) -> None:
    """Warns of LoRAs and embeddings in a pipeline's folder, and of networks that aren't among its `parts`: they aren't
    loaded with it."""
    others = sorted(file.parent.name for file in folder.glob("*/config.json") if file.parent.name not in parts)
    if others := [name for name in others if any((folder / name).glob("diffusion_pytorch_model*"))]:
        log.warning(
            "%s: %s isn't loaded, since model_index.json doesn't name it: load_controlnet(PATH) adds a ControlNet to "
            "the model; averaged weights are used if their folder is called unet",
            folder, ", ".join(others[:_MOST]),
        )  # fmt: skip
    named = {file for pattern in _PATTERNS for file in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))}
    found = sorted(file.relative_to(folder).as_posix() for file in named | _by_content(folder))
    if not found:
        return
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    log.warning(
        "%s: %s%s aren't loaded with the pipeline: add a LoRA to the model with load_lora(PATH), and the embedding of "
        "a word with load_word(PATH)",
        folder, ", ".join(found[:_MOST]), more,
    )  # fmt: skip


def _by_content(folder: Path) -> set[Path]:
    """The .safetensors files, beside the index or in a folder that isn't a part, that hold an adapter's tensors."""
    files = [*folder.glob("*.safetensors")]
    files += [file for file in folder.glob("*/*.safetensors") if not (file.parent / "config.json").is_file()]
    return {file for file in files if _is_adapter(file)}


def _is_adapter(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return False
    return any("lora_" in name or ".lora." in name for name in names) or bool(embedding_in(names))
