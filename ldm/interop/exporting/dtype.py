"""Weights in half precision for an export: `dtype=float16`, `bfloat16` or `float32`."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.common.tensors import write_safetensors
from ldm.networks.computing.finite import is_finite

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_KEYS = ("dtype", "torch_dtype")  # entries for the precision of the weights in transformers' configs


def named(dtype: str) -> torch.dtype:
    """The dtype with this name. Raises UserError for any other name."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} isn't one of float32, float16, bfloat16.{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def cast(state: Mapping[str, Tensor], dtype: str | None, where: str) -> dict[str, Tensor]:
    """`state` with its floating-point tensors in `dtype`; None changes nothing.

    Raises UserError for a value that isn't finite in `dtype`: float16 ends at 65,504.
    """
    return {name: _cast(tensor, dtype, f"{where}: {name}") for name, tensor in state.items()}


def cast_folder(folder: Path, dtype: str) -> None:
    """Casts the weights of every part in the `folder` of a diffusers pipeline, or of a single part, to `dtype`."""
    for file in sorted(folder.rglob("*.bin")):
        if not any(file.parent.glob("*.safetensors")):
            name = file.relative_to(folder)
            raise UserError(f"{name} is pickled, and can't be cast: save it as .safetensors, or leave dtype out.")
        file.unlink()  # a second copy of the weights in the .safetensors file beside it
    for file in sorted(folder.rglob("*.safetensors")):
        cast_file(file, dtype)
        _declare_dtype(file.parent / "config.json", dtype)


def cast_file(file: Path, dtype: str) -> None:
    """Casts the weights in a .safetensors file to `dtype` and keeps its metadata."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata, state = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    state = cast(state, dtype, file.name if file.parent.name == "" else f"{file.parent.name}/{file.name}")
    atomic_write(file, lambda opened: write_safetensors(opened, state, metadata))


def _cast(tensor: Tensor, dtype: str | None, what: str) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    other = tensor.to(named(dtype))
    if not is_finite(other):
        if not is_finite(tensor):
            raise UserError(f"{what} isn't finite: the model is damaged, so train it again, or download it again.")
        most, limit = tensor.abs().max().item(), torch.finfo(other.dtype).max
        other_dtype = "bfloat16 or float32" if dtype == "float16" else "float32"
        raise UserError(f"{what} holds {most:.3g}, and {dtype} ends at {limit:.5g}: export with dtype={other_dtype}.")
    return other


def _declare_dtype(file: Path, dtype: str) -> None:
    """Writes the new precision into a config that has an entry for it."""
    config = json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}
    if declared := [key for key in _KEYS if isinstance(config.get(key), str)]:
        atomic_write(file, json.dumps(config | dict.fromkeys(declared, dtype), indent=2, ensure_ascii=False) + "\n")
