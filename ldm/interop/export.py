"""A model of ours as a diffusers folder, or (`to_single_file`) as a single Stable Diffusion file.

    ldm export run=emoji to=diffusers out=DIR
    ldm export run=emoji to=single_file out=FILE.safetensors

Stock classes are used where there are any, otherwise classes of ours in a file beside the weights, which diffusers
loads with `trust_remote_code=True`. The report, printed and in the model card, says which of the two it is for each
part, and why.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.conditioning import ClassLabel, Conditioner, FrozenText, Text
from ldm.conditioning.text.encoders import write_encoder
from ldm.diffusion import Flow
from ldm.interop import schedulers
from ldm.interop.exporting import dtype as precision
from ldm.interop.exporting import pipelines
from ldm.interop.exporting.augmentation import without_augmentation
from ldm.interop.exporting.bundle import bundle, frozen_in, without_words
from ldm.interop.exporting.card import card
from ldm.interop.exporting.export_report import Report
from ldm.interop.exporting.part_files import copy_source, write_json, write_own, write_part
from ldm.interop.first_stages.writing import write_first_stage
from ldm.interop.parts import controlnet_config, inpainting, sdxl, unet_config, vae_config
from ldm.interop.to_single_file import to_single_file
from ldm.networks import Autoencoder, Controlled, ControlNet, DiT, DiTControlNet, Identity, UNet

FORMATS = ("diffusers", "ldm", "single_file")


def export(
    model: nn.Module,
    out: str | Path,
    to: str = "diffusers",
    about: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> Report:
    """Writes `model` (LatentDiffusion, an autoencoder, UNet, DiT or ControlNet) to the folder `out`, which must be new
    or empty.

    `to="ldm"` writes a model folder that includes the files of frozen text encoders, `to="single_file"` the
    .safetensors file `out` under Stable Diffusion's names. `about` goes into the model card or the file's metadata.
    `dtype` ("float16", "bfloat16" or "float32") is the type in which weights are stored; a model folder is always in
    float32.
    """
    if to not in FORMATS:
        raise UserError(f"to={to} isn't a format to export to.{did_you_mean(to, FORMATS)}")
    if dtype is not None and precision.named(dtype) != torch.float32 and to == "ldm":
        raise UserError("a model folder is in float32, in which ldm computes: leave dtype out, or use to=diffusers.")
    if callable(bare := getattr(model, "bare", None)):
        bare("export", controlnets=to == "diffusers")  # other adapters on the model aren't exported with it
    if to != "ldm":
        model = without_augmentation(without_words(model))
    if to == "single_file":
        return to_single_file(model, Path(out), dtype, about or {})
    return _folder(model, Path(out), to, about=about or {}, dtype=dtype)


def _folder(model: nn.Module, out: Path, to: str, about: Mapping[str, Any], dtype: str | None) -> Report:
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} isn't empty: name another folder to export to.")
    out.mkdir(parents=True, exist_ok=True)
    try:
        if to == "ldm":
            return bundle(model, out)
        report = _to_diffusers(model, out, about)
        if dtype is not None:
            precision.cast_folder(out, dtype)
        return report
    except UserError:
        shutil.rmtree(out)  # an incomplete model, in a folder that was new or empty
        raise


def _to_diffusers(model: nn.Module, out: Path, about: Mapping[str, Any]) -> Report:
    report = Report()
    if isinstance(model, Autoencoder):
        z = model.latent_channels
        write_first_stage(
            model,
            (torch.zeros(z), torch.ones(z)),
            out=out,
            report=report,
            sample_size=32,
            declared=vae_config.scaling_config(model.scaling),
        )
    elif isinstance(model, (UNet, DiT)):
        _write_unet(model, out, report, None)
    elif isinstance(model, ControlNet):
        _write_controlnet(model, out, report)
    elif hasattr(model, "denoiser"):
        _write_pipeline(model, out, report)
    else:
        more = " Only a U-Net's ControlNet can." if isinstance(model, DiTControlNet) else ""
        raise UserError(f"a {type(model).__name__} can't be exported to diffusers.{more}")
    atomic_write(out / "README.md", card(model, report, about))
    return report


def _write_pipeline(model: Any, out: Path, report: Report) -> None:
    network, z = model.denoiser.network, model.first_stage.latent_channels
    controlnets: list[Any] = []
    if isinstance(network, Controlled):
        controlnets[:] = network.controlnets
        network = network.network
        if any(isinstance(net, DiTControlNet) for net in controlnets):
            raise UserError("a DiT's ControlNet can't be exported to diffusers: export the model without it.")
    factor = model.first_stage.factor
    size = (model.preprocess.height // factor, model.preprocess.width // factor)
    index: dict[str, Any] = {
        "unet": _write_unet(network, out / "unet", report, size=size, conditioner=model.conditioner)
    }
    scheduler = schedulers.to_diffusers(model.denoiser.parameterization, model.sampling)
    write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    report.parts["scheduler"] = "stock"
    if not isinstance(model.first_stage, Identity):
        side = max(model.preprocess.height, model.preprocess.width)
        where = out / "vae"
        whitening = (model.latent_mean, model.latent_std)
        index["vae"] = write_first_stage(model.first_stage, whitening, out=where, report=report, sample_size=side)
    index |= _write_conditions(model.conditioner, out, report)
    reason = pipelines.why_own(model, index)
    if reason:
        _check_own(model.conditioner, reason)
    if controlnets:
        if reason or len(controlnets) > 1:
            reason = reason or f"there are {len(controlnets)} of them"
            raise UserError(
                f"the model and its ControlNet aren't a StableDiffusionControlNetPipeline: {reason}. Export each alone."
            )
        index["controlnet"] = _write_controlnet(
            controlnets[0], out / "controlnet", report, sdxl.features_of(model.conditioner)
        )
    if reason:
        report.parts["pipeline"] = reason
        copy_source("ldm_pipeline", out)
        index |= {"_class_name": ["ldm_pipeline", "LdmPipeline"], "shape": [z, *size], "sampling": dict(model.sampling)}
        if isinstance(model.denoiser.parameterization, Flow):
            index["t_max"] = scheduler["t_max"]
        for part in frozen_in(model):
            index["text"] = {"length": part.length, "masked": part.masked}
    else:
        report.parts["pipeline"] = "stock"
        index |= pipelines.settings(model, network, scheduler["_class_name"], bool(controlnets))
    write_json(out / "model_index.json", {"_diffusers_version": "0.35.0", **index})


def _check_own(conditioner: Conditioner, reason: str) -> None:
    """Refuses conditions that a pipeline of our own can't have. `reason` says why the model isn't a stock one."""
    if inpainting.part_of(conditioner):
        raise UserError(
            f"the model can't be diffusers' inpainting pipeline, the only one that reads masks: {reason}. "
            "Export it with to=ldm."
        )
    if sdxl.encoders_of(conditioner):
        raise UserError(
            "the model can't be a StableDiffusionXLPipeline, the only pipeline for two text encoders: "
            f"{reason}. Export it with to=ldm."
        )


def _write_unet(
    network: nn.Module,
    out: Path,
    report: Report,
    size: tuple[int, int] | None,
    conditioner: Conditioner | None = None,
) -> list[str]:
    if not isinstance(network, (UNet, DiT)):
        raise UserError(f"a {type(network).__name__} can't be exported to diffusers yet; a UNet or a DiT can.")
    sample_size: Any = size and (size[0] if size[0] == size[1] else list(size))
    reasons = ["a DiT of ours"] if isinstance(network, DiT) else unet_config.obstacles(network)
    if conditioner is not None and sdxl.is_xl_unet(network) and not sdxl.encoders_of(conditioner):
        reasons.append("vector_layers=2 without Stable Diffusion XL's conditions")
    if reasons or isinstance(network, DiT):
        report.parts["unet"] = "; ".join(reasons)
        return write_own("ldm_unet", "LdmUNet", network, out=out, config={"sample_size": sample_size})
    report.parts["unet"] = "stock"
    features = None if conditioner is None else sdxl.features_of(conditioner)
    config = unet_config.to_diffusers(network, sample_size, features)
    write_part(out, config, unet_config.weights(network.state_dict(), config))
    return ["diffusers", "UNet2DConditionModel"]


def _write_controlnet(model: ControlNet, out: Path, report: Report, features: int | None = None) -> list[str]:
    config = controlnet_config.to_diffusers(model, features)
    write_part(out, config, controlnet_config.weights(model.state_dict(), config))
    report.parts["controlnet"] = "stock"
    return ["diffusers", "ControlNetModel"]


def _write_conditions(conditioner: Conditioner, out: Path, report: Report) -> dict[str, list[str]]:
    if encoders := sdxl.encoders_of(conditioner):
        return _write_encoders(encoders, out, report)
    parts = inpainting.others(conditioner)
    frozen = [name for name, part in parts.items() if isinstance(part, FrozenText)]
    if unknown := [n for n, p in parts.items() if not isinstance(p, (FrozenText, Text, ClassLabel))]:
        raise UserError(f"conditions {', '.join(unknown)} can't be exported to diffusers; text and class labels can.")
    if frozen:
        part = parts[frozen[0]]
        assert isinstance(part, FrozenText)
        if len(parts) > 1 or part.pooled:
            raise UserError("a frozen text encoder beside other conditions, or pooled, can't be exported to diffusers.")
        if part.clip_skip != 1:
            raise UserError(
                f"clip_skip={part.clip_skip} of the text encoder can't be exported to diffusers: use to=ldm."
            )
        return _write_encoders([part], out, report)
    if not parts:
        return {}
    report.parts["conditioner"] = f"built-in {', '.join(parts)}"
    return {
        "conditioner": write_own("ldm_conditioner", "LdmConditioner", conditioner, out=out / "conditioner", config={})
    }


def _write_encoders(parts: list[FrozenText], out: Path, report: Report) -> dict[str, list[str]]:
    index = {}
    for part in parts:
        name, words = f"text_encoder{part.suffix}", out / f"tokenizer{part.suffix}"
        write_encoder(part, out / name, words)
        _set_length(words / "tokenizer_config.json", part.length)
        report.parts[name] = "stock"
        index[name] = ["transformers", type(part.encoder).__name__]
        index[words.name] = ["transformers", type(part.tokenizer).__name__]
    return index


def _set_length(config: Path, length: int | None) -> None:
    """Sets the length to which pipelines pad in the tokenizer's config."""
    if length and config.is_file():
        write_json(config, json.loads(config.read_text()) | {"model_max_length": length})


if __name__ == "__main__":
    import sys

    sys.exit("python -m ldm.interop.export is now `ldm export`, with the same options.")
