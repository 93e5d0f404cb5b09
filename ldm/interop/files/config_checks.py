"""Checks of the values in a diffusers folder's configs: errors name file and key before anything is built."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.values import number, whole

_WHOLE = (
    "in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim",
    "attention_head_dim", "num_attention_heads", "block_out_channels", "transformer_layers_per_block",
    "num_class_embeds", "projection_class_embeddings_input_dim", "time_cond_proj_dim",
    "addition_time_embed_dim",
    "conditioning_channels",
    "conditioning_embedding_out_channels",
    "num_vq_embeddings", "vq_embed_dim", "encoder_block_out_channels", "decoder_block_out_channels",
    "num_encoder_blocks", "num_decoder_blocks", "upsampling_scaling_factor",
)  # fmt: skip
_NAMES = (
    "act_fn", "mid_block_type", "down_block_types", "up_block_types", "class_embed_type", "resnet_time_scale_shift",
    "addition_embed_type", "norm_type", "upsample_fn",
)  # fmt: skip
_SWITCHES = (
    "use_linear_projection", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv",
    "lookup_from_codebook",
)  # fmt: skip
_PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline", "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline", "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline", "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline", "StableDiffusionXLControlNetInpaintPipeline", "LdmPipeline",
)  # fmt: skip
_OWN = ["ldm_pipeline", "LdmPipeline"]  # a class in a file beside the index
_WIDEST = 65_536
_TEXT = ("length", "masked")


def check_part(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError at the first setting of a U-Net, an autoencoder or a ControlNet whose value has the wrong
    type."""
    for key in _WHOLE:
        for value in _values(config.get(key)):
            whole(value, f"{where}: {key}")
    for key in _NAMES:
        for value in _values(config.get(key)):
            if not isinstance(value, str):
                raise UserError(f"{where}: {key} has {str(value)[:40]!r}, where a name belongs.")
    for key in _SWITCHES:
        _switch(config.get(key), f"{where}: {key}")
    number(config.get("dropout", 0.0), f"{where}: dropout")


def check_index(index: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuses an unknown pipeline class, and parts and options whose values have the wrong type."""
    name = index.get("_class_name")
    if name is not None and name != _OWN and name not in _PIPELINES:
        raise UserError(f"{where}: the pipeline {name!r} has no counterpart here; known: {', '.join(_PIPELINES)}.")
    for part in sorted(known & index.keys()):
        value = index[part]
        if value is not None and not (isinstance(value, list) and len(value) == 2):
            raise UserError(f"{where}: {part} is {str(value)[:60]!r}, where a library and a class belong.")
    for key in ("force_zeros_for_empty_prompt", "requires_safety_checker"):
        _switch(index.get(key), f"{where}: {key}")
    for key in ("text", "sampling"):
        if not isinstance(index.get(key) or {}, Mapping):
            raise UserError(f"{where}: {key} is {str(index[key])[:40]!r}, where a table of settings belongs.")
    text, sampling = index.get("text") or {}, index.get("sampling") or {}
    if odd := [key for key in text if key not in _TEXT]:
        raise UserError(f"{where}: text has {', '.join(odd[:4])}, which isn't supported; known: {', '.join(_TEXT)}.")
    for value in _values(text.get("length")):
        whole(value, f"{where}: text.length", most=_WIDEST)
    _switch(text.get("masked"), f"{where}: text.masked")
    for key in ("steps", "guidance"):
        if sampling.get(key) is not None:
            number(sampling[key], f"{where}: sampling.{key}")


def check_class(index: Mapping[str, Any], part: str, config: Mapping[str, Any], where: str) -> None:
    """Refuses a part whose config names another class than the pipeline's index, as it is unknown which is right."""
    declared, own = index[part][1], config.get("_class_name")
    if index[part][0] == "transformers":  # whose configs have a list of classes, or none
        classes = config.get("architectures") or [declared]
        akin = any(len(os.path.commonprefix([declared, str(one)])) > 1 for one in classes)  # CLIPModel, its text side
        own = declared if akin else ", ".join(map(str, classes))
    if declared != own:
        raise UserError(f"{where}: the class is {own!r}, and {declared!r} by model_index.json: keep the right one.")


def sizes(value: Any, default: int, what: str) -> tuple[int, int]:
    """A diffusers sample size, one number or two, as (height, width)."""
    if value is None:
        return default, default
    values = value if isinstance(value, (list, tuple)) else [value, value]
    if len(values) != 2:
        raise UserError(f"{what} is {str(value)[:40]!r}, where a whole number or two belong.")
    height, width = (whole(one, what, most=_WIDEST) for one in values)
    return height, width


def _values(value: Any) -> Iterator[Any]:
    """The values in a list of any depth; none for None."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _values(one)
    elif value is not None:
        yield value


def _switch(value: Any, what: str) -> None:
    if value not in (True, False, None):
        raise UserError(f"{what} is {str(value)[:40]!r}, where true or false belongs.")
