"""What adapters have in common: their base and their model folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ldm import artifact
from ldm.common.errors import UserError
from ldm.interop import hub
from ldm.interop.files.foreign_adapters import adapter_in
from ldm.interop.recognition import check_readable


class Adapter(nn.Module):
    """Weights that change a base model, stored in their own model folder (`ldm.artifact`) without those of the base.

    A subclass is registered, has its weights as parameters, and puts them on a model by `attach(model, name, scale)`,
    once for each name. `base` is plain data, `{"hash": ..., "path": ...}`: `artifact.model_hash` of the model that it
    was trained on, and the path of that model: absolute, relative to the adapter's model folder, or its address on the
    hub. An adapter of
    unknown origin (a file of another tool) has no base, and can be put on any model that its shapes fit.
    """

    def __init__(self, base: Mapping[str, str] | None = None):
        super().__init__()
        self.base = dict(base or {})

    def attach(self, model: Any, name: str, scale: float) -> None:
        """Puts the weights on `model` under `name`, at `scale`."""
        raise NotImplementedError

    def check_base(self, model: Any, where: str, force: bool = False) -> None:
        """Raises UserError for a model other than the base, unless forced. `where` names the adapter."""
        wanted, found = self.base.get("hash"), hash_of(model)
        if wanted and wanted != found and not force:
            raise UserError(
                f"{where} was trained on another base (hash {wanted[:12]}, {self.base.get('path', 'path unknown')}; "
                f"this model's is {found[:12]}): load that one, or give force=True to use it anyway."
            )

    def find_base(self, folder: Path) -> Path:
        """The path of the base, for an adapter in the model folder `folder`. Raises UserError if it isn't there."""
        path = self.base.get("path")
        if not path:
            raise UserError(f"{folder} is an adapter that names no base: load a base, then add the adapter to it.")
        if hub.is_address(path):
            return hub.fetch(path)
        found = Path(os.path.normpath(folder / path))
        if not found.exists():
            raise UserError(
                f"{folder} is an adapter of the base {found} (hash {self.base.get('hash', '')[:12]}), which isn't "
                "there: load the base from its new place, then add the adapter with load_lora or load_controlnet."
            )
        return found


def hash_of(model: Any) -> str:
    """The hash that identifies a base: that of the model as it was loaded, whatever was put on it since."""
    if getattr(model, "base_hash", None) is None:
        model.base_hash = artifact.model_hash(model)
    return model.base_hash


def base_of(model: Any, path: Path, folder: Path) -> dict[str, str]:
    """Hash and path of the base `model` at `path`, as an adapter in the model folder `folder` records them.

    The path is relative if both are in the same tree, so that a tree of runs can be moved.
    """
    if origin := hub.origin_of(path):
        return {"hash": hash_of(model), "path": origin}
    path, folder = path.expanduser().resolve(), folder.expanduser().resolve()
    near = len(Path(os.path.commonpath([path, folder])).parts) > 1
    return {"hash": hash_of(model), "path": Path(os.path.relpath(path, folder) if near else path).as_posix()}


def read(path: str | Path) -> Adapter:
    """The adapter in a run folder or a model folder. Raises UserError if there is none."""
    path = hub.local(path).expanduser()
    for folder in (path, path / "model"):
        if (folder / "manifest.json").is_file():
            adapter = artifact.load(folder)
            if not isinstance(adapter, Adapter):
                raise UserError(
                    f"{path} holds a whole {type(adapter).__name__}, not an adapter: load it with ldm.load(...)."
                )
            return adapter
    files = [path] if path.is_file() else sorted(path.glob("adapter_model.*")) + sorted(path.glob("*lora_weights.*"))
    if files and files[0].suffix.lower() == ".safetensors":
        raise UserError(f"{files[0]} holds {adapter_in(check_readable(files[0]))}.")
    if files:
        raise UserError(
            f"{files[0]} isn't a .safetensors file, and others (.bin, .pt, .ckpt, .gguf) aren't read for adapters, "
            "since they may hold code: get it as .safetensors, or convert it in the tool that it came from."
        )
    if below := sorted(path.glob("*/adapter_model.safetensors")) + sorted(path.glob("*/*lora_weights.safetensors")):
        raise UserError(
            f"there is no adapter at {path} itself, but there is one level below: name {' or '.join(map(str, below))}."
        )
    raise UserError(f"there is no adapter at {path}: name a run, its model/ folder or a .safetensors file.")
