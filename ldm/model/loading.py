"""`ldm.load`: from a run, a model folder or a checkpoint to the model that it holds."""

import inspect
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm import artifact, interop
from ldm.adapters import Adapter
from ldm.common.errors import UserError, did_you_mean, printable
from ldm.common.files import is_whole, record_of
from ldm.conditioning import FrozenText, ImageEmbedding
from ldm.interop import hub
from ldm.model.cascade import cascade
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.latent_space import compute
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.compiled import check_tools
from ldm.networks.computing.precision import check_precision
from ldm.networks.layers import laid_out


def load(
    path: str | Path | Sequence[str | Path],
    device: str | torch.device | None = None,
    *,
    precision: str | torch.dtype = "auto",
    tile: int | None = None,
    tile_statistics: str = "image",
    compile: bool | str = False,
    **options: Any,
) -> Any:
    """The trained model at `path`, in eval mode.

    `path` is a run folder, its `model/` folder or a checkpoint file of a run; a folder of diffusers; a single-file
    checkpoint with CompVis's names (Stable Diffusion 1, 2 and XL); or the address of one of these on the Hugging Face
    Hub, `hf://OWNER/NAME[@REVISION][/PATH]`: see `ldm.interop.hub`. Several paths make a cascade: the first generates,
    the others enlarge. Neither Lightning nor Hydra is needed, nor the data and the config of the training. `device`
    defaults to the CPU. `options` are only for single-file checkpoints: see `ldm.interop.load_single_file`.

    `precision` is the one in which the networks compute, also after the model is moved: "float32", "bfloat16",
    "float16", or "auto", which is bfloat16 on a CUDA GPU that supports it and float32 elsewhere. The weights stay in
    float32: see `LatentDiffusion.precision`. With `tile`, images of more than tile x tile pixels are encoded and
    decoded in parts, with norms over the whole "image" or over each "tile" (`tile_statistics`): see `Coding` in
    ldm/networks/computing. With `compile`, true or the name of a backend, networks run compiled by torch.compile: see
    `Compiler` there.
    """
    coding: dict[str, Any] = {"precision": check_precision(precision), "tile": tile, "tile_statistics": tile_statistics}
    coding["compile"] = compile
    check_tools(Coding(**coding).compile, torch.device(device or "cpu"))  # refuses wrong settings before any work
    if not isinstance(path, (str, Path)):
        return cascade([load(one, **coding, **options) for one in path], device or "cpu")
    path = hub.local(path)
    model = _load(path, device or "cpu", options)
    if origin := hub.origin_of(path):
        model.origin = origin
    return compute(laid_out(model, torch.device(device or "cpu")), **coding)


def _load(path: Path, device: str | torch.device, options: dict[str, Any]) -> Any:
    """The model at `path` on `device`. Raises UserError if there is none, or for `options` that it doesn't have."""
    if path.is_file() and interop.is_single_file(path):
        known = [key for key in inspect.signature(interop.load_single_file).parameters if key != "path"]
        for key in options:
            if key not in known:
                raise UserError(f"a single-file checkpoint has no option '{key}'.{did_you_mean(key, known)}")
        return interop.load_single_file(path, **options).to(device)
    if path.is_file():
        _check_checkpoint(path)
        model = _from_checkpoint(path)
        _refuse_options(options, path)
        return _on_base(model, path.parent.parent / "model", path).to(device)
    if path.is_dir():
        _refuse_options(options, path)
    return _load_folder(path, device)


def _check_checkpoint(path: Path) -> None:
    """Raises UserError for a .safetensors file, which holds a part of a model at most."""
    if path.suffix.lower() != ".safetensors":
        return
    if words := interop.embedding_in(interop.check_readable(path)):
        raise UserError(f"{path} holds {words}.")
    raise UserError(
        f"{path} holds no Stable Diffusion 1, 2 or XL with CompVis's names. Load a LoRA or a ControlNet into a model, "
        "with model.load_lora or model.load_controlnet, and a diffusers folder as a whole."
    )


def _load_folder(path: Path, device: str | torch.device) -> Any:
    """The model of a run folder, a model folder or a folder of diffusers. Raises UserError if there is none."""
    whole = [folder for folder in (path, path / "model") if (folder / "manifest.json").is_file()]
    if not whole and interop.is_diffusers(path):
        return _with_control(interop.load_folder(path), path).to(device)
    for folder in (path, path / "model"):
        if (folder / "manifest.json").is_file() or (folder / "config.json").is_file():
            model = artifact.load(folder, device)
            for module in model.modules():
                if isinstance(module, (FrozenText, ImageEmbedding)):
                    module.locate(folder)
            return _on_base(model, folder, path).to(device)
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} has no finished model yet; load one of {path / 'checkpoints'}, or wait for the run's first save."
        )
    stages = () if path.is_absolute() else ("ldm", "vae")
    likely = [run for stage in stages if (run := Path("runs", stage, path)).is_dir()]
    hint = f" Did you mean '{likely[0]}'?" if likely else ""
    raise UserError(f"there is no model at {path}: name a run folder, its model/ folder, or a checkpoint.{hint}")


def _refuse_options(options: dict[str, Any], path: Path) -> None:
    if options:
        raise UserError(f"{', '.join(options)}: only for single-file checkpoints, and {path} isn't one: leave it out.")


def _with_control(model: Any, path: Path) -> Any:
    """The model of a diffusers folder, with the ControlNet of its pipeline if there is one."""
    if control := interop.controlnet_in(path):
        model.load_controlnet(control)
    return model


def _on_base(model: nn.Module, folder: Path, path: Path) -> Any:
    """The model itself, or for an adapter its base with the adapter on.

    The base is found by the path that the adapter in `folder` records, and checked by its hash.
    """
    if not isinstance(model, Adapter):
        return model
    base = load(model.find_base(folder), precision="float32")
    base.put_on(model, hub.name_of(path.parent if path.name == "model" else path), where=str(path))
    return base


def _from_checkpoint(path: Path) -> nn.Module:
    """The model of a training checkpoint, with its EMA weights.

    Raises UserError for a damaged file, found by the record beside it, or without a record by its own checksums.
    """
    if record_of(path).exists() and not is_whole(path):
        raise UserError(
            f"{path} is damaged: size or SHA-256 differ from the record beside it; load the previous checkpoint."
        )
    try:
        with zipfile.ZipFile(path) as file:
            if not record_of(path).exists() and file.testzip():
                raise ValueError("checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if "ldm_model" not in checkpoint:
            raise UserError(f"{path} holds no model of ldm or Stable Diffusion: {_contents(checkpoint)}.")
        config = checkpoint["ldm_model"]
        weights = {name: checkpoint["state_dict"][key] for name, key in checkpoint["ldm_weights"].items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a checkpoint of ldm ({type(error).__name__}); it may be damaged, or hold code, "
            "which isn't run: if it is another tool's file, save it there as .safetensors."
        ) from None
    return artifact.restore(config, weights, str(path))


def _contents(checkpoint: Any) -> str:
    names = [str(name) for name in checkpoint] if isinstance(checkpoint, dict) else [type(checkpoint).__name__]
    return interop.embedding_in(names) or f"its entries are {printable(', '.join(names[:4]))[:200]}"


LatentDiffusion._opener = staticmethod(load)
