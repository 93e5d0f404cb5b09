"""`ldm.load`: a run, a model folder or a checkpoint becomes the model it holds."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import ldm.pipeline  # noqa: F401  registers the classes that files name
from ldm import artifact
from ldm.errors import UserError


def load(path: str | Path, device: str | torch.device | None = None) -> Any:
    """The trained model at `path`, in eval mode: a run folder, its `model/` folder, or a checkpoint file of a run.

    Needs neither Lightning nor Hydra, nor the data or the config that it was trained with. `device` defaults to the
    CPU.
    """
    path, device = Path(path), device or "cpu"
    if path.is_file():
        return _from_checkpoint(path).to(device)
    for folder in (path, path / "model"):
        if (folder / "manifest.json").is_file() or (folder / "config.json").is_file():
            return artifact.load(folder, device)
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} has no finished model yet; load one of {path / 'checkpoints'}, or wait for the run's first save."
        )
    raise UserError(f"there is no model at {path}: name a run folder, its model/ folder, or a checkpoint.")


def _from_checkpoint(path: Path) -> nn.Module:
    """The model of a training checkpoint, with its EMA weights."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["ldm_model"]
        weights = {name: checkpoint["state_dict"][key] for name, key in checkpoint["ldm_weights"].items()}
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a checkpoint of ldm ({type(error).__name__}); it may be damaged."
        ) from None
    return artifact.restore(config, weights, str(path))
