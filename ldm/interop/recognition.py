"""Recognises CompVis checkpoints by the names of their tensors."""

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import torch

from ldm.common.errors import UserError
from ldm.interop.parts import compvis, controlnet_config

_BARE_VAE = "encoder.down.0.block.0.norm1.weight"


def is_single_file(path: Path) -> bool:
    """Whether a file is a CompVis checkpoint, by the names in it."""
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as opened:
                return _is_compvis(opened.keys())
        except (SafetensorError, OSError):
            return False
    return path.suffix.lower() in (".ckpt", ".pt", ".pth") and _is_pickled_compvis(path)


def check_readable(path: Path) -> list[str]:
    """The names in a .safetensors file. Raises UserError for a file of that ending with other content."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} can't be read as a .safetensors file ({type(error).__name__}): it is damaged or another file (a "
            "pointer of Git LFS, a web page), so download it again."
        ) from None


def is_bare_vae(names: Container[str]) -> bool:
    """Whether a file with these names holds an autoencoder alone, without a prefix."""
    return _BARE_VAE in names


def _is_compvis(names: Any) -> bool:
    known = (compvis.UNET, compvis.VAE, controlnet_config.COMPVIS)
    names = [n for n in names if isinstance(n, str)] if isinstance(names, Iterable) else []
    return any(n.startswith(known) or n == _BARE_VAE for n in names)


def _is_pickled_compvis(path: Path) -> bool:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return False
    return isinstance(content, dict) and _is_compvis(content.get("state_dict", content))
