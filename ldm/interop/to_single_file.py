"""A model of ours as one .safetensors file under CompVis's names, which ComfyUI, A1111, kohya's tools and diffusers
open: Stable Diffusion 1, 2 and XL, and an autoencoder or a U-Net alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.common.tensors import write_safetensors
from ldm.diffusion import V
from ldm.interop.exporting import dtype as precision
from ldm.interop.exporting.export_report import Report
from ldm.interop.parts import compvis, inpainting, sdxl, sdxl_file, stable_diffusion, vae_config
from ldm.interop.parts.to_clip import to_clip_names, to_open_clip_names
from ldm.interop.settings import latent_scale, modelspec
from ldm.interop.single_file import to_compvis
from ldm.networks import AutoencoderKL, UNet

Contents = tuple[dict[str, Tensor], dict[str, str], Report]
# By the spread of this weight ComfyUI recognises v in a 2.x model.
_COMFY_V = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_COMFY_SPREAD = 0.09


def to_single_file(model: nn.Module, out: Path, dtype: str | None, about: Mapping[str, Any]) -> Report:
    """Writes a LatentDiffusion, an AutoencoderKL or a UNet to the new file `out`."""
    if out.suffix != ".safetensors":
        raise UserError(
            f"out={out}: a single file's name ends in .safetensors, as in out={out.with_suffix('.safetensors')}."
        )
    if out.exists():
        raise UserError(f"{out} exists already: name another file to export to.")
    state, declared, report = _contents(model, out.stem, about)
    state = precision.cast(state, dtype, out.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, lambda file: write_safetensors(file, state, declared))
    return report


def _contents(model: nn.Module, title: str, about: Mapping[str, Any]) -> Contents:
    """Tensors, metadata, and the report on them."""
    if isinstance(model, AutoencoderKL):
        _refuse("the autoencoder", stable_diffusion.vae_obstacles(model))
        return to_compvis(model), {"format": "pt"}, Report({"vae": "stock"})
    if isinstance(model, UNet):
        _refuse("the U-Net", stable_diffusion.unet_obstacles(model))
        return _under(compvis.UNET, to_compvis(model)), {"format": "pt"}, Report({"unet": "stock"})
    if not hasattr(model, "denoiser"):
        raise UserError(f"a {type(model).__name__} has no single file of Stable Diffusion's kind: use to=diffusers.")
    _refuse("the model", stable_diffusion.obstacles(model))
    return _whole(model, title, about)


def _refuse(what: str, reasons: list[str]) -> None:
    if reasons:
        raise UserError(
            f"{what} can't be a single file of Stable Diffusion's kind: {'; '.join(reasons)}. "
            "Change that, or use to=diffusers."
        )


def _whole(model: Any, title: str, about: Mapping[str, Any]) -> Contents:
    version = stable_diffusion.version_of(model)
    state = _under(compvis.UNET, to_compvis(model.denoiser.network))
    factor = sdxl.FACTOR if version == "XL" else latent_scale.SD_FACTOR
    state |= _under(compvis.VAE, _first_stage(model, factor)) | _text(model, version)
    state |= _markers(model.denoiser.parameterization)
    different = stable_diffusion.differences(model, version)
    declared = modelspec.metadata(model, version, not different, title=title, about=about)
    encoders = [f"text_encoder{part.suffix}" for part in sdxl.encoders_of(model.conditioner)] or ["text_encoder"]
    report = Report(dict.fromkeys(("unet", "vae", *encoders), "stock"))
    report.notes = _size_notes(different, version)
    if not different and version != "XL":  # tools read all markers of XL
        report.notes = _noise_notes(model.denoiser.parameterization, version, state)
    report.notes += _factor_notes(model, factor)
    return state, declared, report


def _first_stage(model: Any, factor: float) -> dict[str, Tensor]:
    """The autoencoder, whitened such that latents only need to be multiplied by `factor`: readers know no other
    setting."""
    state = to_compvis(model.first_stage)
    std = model.latent_std * factor
    plain = bool((model.latent_mean == 0).all()) and torch.allclose(std, torch.ones_like(std), rtol=1e-6, atol=0)
    return state if plain else vae_config.fold(state, model.latent_mean, std)


def _text(model: Any, version: str) -> dict[str, Tensor]:
    if version == "XL":
        return sdxl_file.to_text(sdxl.encoders_of(model.conditioner))
    (text,) = inpainting.others(model.conditioner).values()
    state = text.encoder.state_dict()
    return _under(compvis.TEXT, to_clip_names(state) if version == "1" else to_open_clip_names(state))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _markers(parameterization: Any) -> dict[str, Tensor]:
    """Empty tensors whose names tell that the network predicts v, and that the schedule ends at zero SNR."""
    declared = {"v_pred": isinstance(parameterization, V), "ztsnr": parameterization.schedule.zero_terminal_snr}
    return {name: torch.zeros(0) for name, on in declared.items() if on}


def _size_notes(different: list[str], version: str) -> list[str]:
    if not different:
        return []
    shown = "; ".join(different[:3]) + (f"; and {len(different) - 3} more" if len(different) > 3 else "")
    return [
        f"its sizes aren't Stable Diffusion {version}'s ({shown}), and ComfyUI and A1111 read only those: open it "
        "with ldm, or with diffusers' from_single_file(FILE, config=FOLDER), where FOLDER is what to=diffusers writes"
    ]


def _factor_notes(model: Any, usual: float) -> list[str]:
    """A note where a diffusers folder has another factor: in the file the difference is folded into the autoencoder."""
    factor = vae_config.stock_factor(model.latent_mean, model.latent_std)
    if factor is None or math.isclose(factor, usual, rel_tol=1e-5):
        return []
    return [
        f"the file's latents are scaled by {usual:g}, not by {factor:.5g}: "
        f"set scaling_factor={usual:g} in diffusers' config"
    ]


def _noise_notes(parameterization: Any, version: str, state: Mapping[str, Tensor]) -> list[str]:
    """What web UIs can't recognise in a file of Stable Diffusion's sizes, so that it must be declared."""
    predicts_v, zero = isinstance(parameterization, V), parameterization.schedule.zero_terminal_snr
    kind = "v_prediction" if predicts_v else "eps"
    node = f"ModelSamplingDiscrete with {kind}{', zsnr' if zero else ''}"
    notes = []
    if predicts_v != _comfy_takes_v(version, state) or zero:
        notes.append(f"ComfyUI doesn't read the prediction from the file: add the node {node} to the model")
    if predicts_v:
        file = f"v{version}-inference{'-v' if version == '2' else ''}.yaml"
        notes.append(f"A1111 reads v from NAME.yaml beside the file: use its {file} with parameterization: v")
    return notes


def _comfy_takes_v(version: str, state: Mapping[str, Tensor]) -> bool:
    """Whether ComfyUI's rule takes the model for v, which it never does for 1.x; its own source calls it a guess."""
    bias = state.get(compvis.UNET + _COMFY_V)
    return version == "2" and bias is not None and bias.float().std(unbiased=False).item() > _COMFY_SPREAD
