"""The files of one part of a diffusers folder: its config, its weights, and the source of a class of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.common.files import atomic_write
from ldm.common.registry import spec_of
from ldm.interop.exporting.flatten import flat


def write_own(module: str, name: str, network: nn.Module, out: Path, config: Mapping[str, Any]) -> list[str]:
    """A part with a class of ours, in a file beside the weights; it holds `network` and is built from its spec."""
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    write_part(out, {"_class_name": name, "spec": spec_of(network), **config}, state)
    copy_source(module, out)
    return [module, name]


def copy_source(module: str, out: Path) -> None:
    """Writes the source of a module of `beside`, with all of ours that it needs, into `out`."""
    atomic_write(out / f"{module}.py", flat(f"ldm.interop.exporting.beside.{module}"))


def write_part(out: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes a config, without what is None, and weights."""
    from safetensors.torch import save_file

    write_json(out / "config.json", {k: v for k, v in config.items() if v is not None})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    save_file(tensors, out / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain data as JSON, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
