"""The conditions of a diffusers pipeline: a text encoder, Stable Diffusion XL's two with image sizes, or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, FrozenText
from ldm.interop.files.values import read_json, whole
from ldm.interop.parts import sdxl


def of_pipeline(
    folder: Path, present: set[str], index: Mapping[str, Any], network: Any, size: tuple[int, int]
) -> Conditioner:
    """The conditioner of a pipeline whose model_index.json is `index`, for its U-Net and images of `size`."""
    name = str(index.get("_class_name"))
    if "text_encoder_2" in present or sdxl.is_xl_unet(network) or name.startswith("StableDiffusionXL"):
        return _xl(folder, present, index, network=network, size=size)
    if "text_encoder" in present:
        text = index.get("text") or {}
        return Conditioner({"text": text_part(folder / "text_encoder", folder / "tokenizer", text)})
    return Conditioner()


def text_part(encoder: Path, tokenizer: Path, options: Mapping[str, Any]) -> FrozenText:
    """A pipeline's text encoder as Stable Diffusion uses it, padded and without a mask, unless `options` differ."""
    for part in (encoder, tokenizer):
        if not part.is_dir():
            raise UserError(f"{part} is missing, although its model_index.json names it: download the folder again.")
    file, config = tokenizer / "tokenizer_config.json", read_json(encoder / "config.json")
    length = whole(config.get("max_position_embeddings", 77), f"{encoder / 'config.json'}: max_position_embeddings")
    limit = read_json(file).get("model_max_length") if file.is_file() else None
    length = length if limit is None else min(length, whole(limit, f"{file}: model_max_length"))
    return FrozenText(str(encoder), str(tokenizer), **{"length": length, "masked": False, **options})


def _xl(folder: Path, present: set[str], index: Mapping[str, Any], network: Any, size: tuple[int, int]) -> Conditioner:
    where = folder / "model_index.json"
    if "text_encoder" not in present and "text_encoder_2" in present:
        raise UserError(
            f"{where} has a second text encoder without a first: the refiner of Stable Diffusion XL can't be "
            "represented here."
        )
    if missing := [part for part in ("text_encoder_2", "tokenizer", "tokenizer_2") if part not in present]:
        raise UserError(
            f"{where}: {', '.join(missing)} is missing, which its U-Net (addition_embed_type) or its class, "
            f"{index.get('_class_name')}, needs."
        )
    if not sdxl.is_xl_unet(network):
        raise UserError(f"{where} has a second text encoder, which the U-Net doesn't read (addition_embed_type).")
    if index.get("text"):
        raise UserError(f"{where}: text describes how one text encoder is read, but there are two: remove text.")
    encoders = [
        text_part(folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}", reading)
        for suffix, reading in zip(("", "_2"), sdxl.READINGS, strict=True)
    ]
    # the default of diffusers' class
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    found = sdxl.conditioner(encoders, zeros, network.size_features, size)
    sdxl.check_fit(network, found, str(where))
    return found
