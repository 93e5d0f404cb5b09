"""The model folder: plain data that is all a model needs.

    config.json          the spec that the model is built from, by names out of the registry, tokenizer included
    model.safetensors    the weights
    manifest.json        size and SHA-256 of both

No name, date or path is inside: equal models give equal files. Loading is strict and never runs code from a file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.registry import build, spec_of

FORMAT = 1
FILES = ("config.json", "model.safetensors")


def save(model: nn.Module, folder: str | Path) -> Path:
    """Writes `model` (of a registered class) as a model folder; the manifest comes last and makes it whole."""
    from ldm.files import atomic_write

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    atomic_write(folder / "config.json", to_json(describe(model)))
    atomic_write(folder / "model.safetensors", _safetensors(model.state_dict()))
    manifest = {name: _fingerprint(folder / name) for name in FILES}
    atomic_write(folder / "manifest.json", to_json({"format": FORMAT, "files": manifest}))
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model in a model folder, in eval mode. Refuses what is damaged, incomplete or of unknown make."""
    folder = Path(folder)
    verify(folder)
    from safetensors.torch import load_file

    return restore(
        json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"), str(folder)
    ).to(device)


def describe(model: nn.Module) -> dict[str, Any]:
    """What `restore` needs beside the weights."""
    preprocess = getattr(model, "preprocess", None)
    described = {"format": FORMAT, "model": spec_of(model)}
    return described | ({"preprocess": spec_of(preprocess)} if preprocess is not None else {})


def restore(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model that `config` describes with `weights`: every name must match, and every shape."""
    if config.get("format") != FORMAT:
        raise UserError(f"{where}: format {config.get('format')!r} is not one that this version reads ({FORMAT}).")
    if not isinstance(config.get("model"), Mapping):
        raise UserError(f"{where}: its config says of no model how it is built; restore it.")
    with torch.device("meta"):  # no memory is taken and nothing initialised before names and shapes are known to fit
        model = build(config["model"])
    report_mismatch(model.state_dict(), weights, where)
    model.load_state_dict(weights, strict=True, assign=True)
    if "preprocess" in config:
        model.preprocess = build(config["preprocess"])
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def report_mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError naming what is missing, unexpected or of another shape."""
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{where}: the weights don't fit the model: {shown}.")


def verify(folder: Path) -> None:
    """Checks a model folder against its manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"{folder} holds no whole model: manifest.json is missing; was the run stopped before it saved one?"
        )
    try:
        files = json.loads(manifest.read_text())["files"]
        wanted = {name: files[name] for name in FILES}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{manifest} is damaged; restore the folder or load a checkpoint of the run.") from None
    for name, recorded in wanted.items():
        if not (folder / name).is_file() or _fingerprint(folder / name) != recorded:
            raise UserError(f"{folder / name} is damaged: size or SHA-256 differ from the manifest; restore it.")


def model_hash(model: nn.Module) -> str:
    """SHA-256 over spec and weights: what names a model in caches and adapters."""
    digest = hashlib.sha256(to_json(describe(model)))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _safetensors(state: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save as serialise

    return serialise({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())})


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
