"""The settings of diffusers' UNet2DConditionModel and of our UNet, converted in both directions.

The names of weights are the same. One weight differs: a table of classes (`num_class_embeds`, an embedding (N, E)) is a
linear map of one-hot vectors here, without bias, whose weight is (E, N).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError
from ldm.common.registry import spec_of
from ldm.interop.files.name_tables import refuse
from ldm.networks import UNet

_KNOWN = (
    "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
    "num_attention_heads", "use_linear_projection", "class_embed_type", "num_class_embeds", "norm_num_groups",
    "projection_class_embeddings_input_dim", "resnet_time_scale_shift", "dropout",
    "time_cond_proj_dim",
    "upcast_attention",  # matters in half precision only
    "addition_embed_type", "addition_time_embed_dim",
    "addition_embed_type_num_heads",  # for another addition_embed_type
    # how averaged weights came about, in the folder unet_ema of diffusers' training scripts
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
)  # fmt: skip
_FIXED = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": ("silu", "swish"),
    "norm_eps": 1e-5,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "resnet_out_scale_factor": 1.0,
}
_ATTENDS = {"CrossAttn{}Block2D": True, "{}Block2D": False}
_EXPORTED = {
    "in_channels", "out_channels", "channels", "multipliers", "blocks", "attention", "depth", "heads", "context_dim",
    "vector_dim", "vector_bias", "vector_layers", "concat_channels", "guidance_dim", "scale_shift", "linear_projection",
    "groups", "dropout",
}  # fmt: skip
_OF_SIZES = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
CLASS_TABLE = "class_embedding.weight"
SIZES = 6  # an image's height and width, crop and target size
SIZE_FEATURES = 256  # features of each of them in SDXL


def from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our UNet that computes the same as a UNet2DConditionModel with `config`."""
    refuse(config, _KNOWN, _FIXED, "the U-Net")
    widths = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(widths)
    default_down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    attends = _attends(config.get("down_block_types", default_down), "Down")
    rising = _attends(config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3), "Up")
    if rising != attends[::-1]:
        raise UserError(
            "the U-Net can't be represented here: it has attention at other levels on the way up than on the way down."
        )
    # diffusers uses both names for the count
    counts = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = [counts] * levels if isinstance(counts, int) else list(counts)
    in_channels, out_channels = config.get("in_channels", 4), config.get("out_channels", 4)
    if in_channels < out_channels:
        raise UserError(f"the U-Net can't be represented here: {in_channels} channels in, {out_channels} out.")
    return {
        "class": "UNet",
        "in_channels": out_channels,
        "concat_channels": in_channels - out_channels,
        "channels": widths,
        "blocks": _one(config.get("layers_per_block", 2), "layers_per_block"),
        "attention": attends,
        "depth": _depths(config.get("transformer_layers_per_block", 1), levels),
        # Without attention, a level's width needn't be a multiple of its head count. The middle has the last level's.
        "heads": [h if a or i == levels - 1 else 1 for i, (h, a) in enumerate(zip(heads, attends, strict=True))],
        "context_dim": _one(config.get("cross_attention_dim", 1280), "cross_attention_dim"),
        "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "linear_projection": bool(config.get("use_linear_projection", False)),
        "groups": config.get("norm_num_groups", 32),
        "dropout": config.get("dropout", 0.0),
        **_vector(config),
        **({"guidance_dim": dim} if (dim := config.get("time_cond_proj_dim")) else {}),
    }


def to_diffusers(unet: UNet, sample_size: int | None = None, size_features: int | None = None) -> dict[str, Any]:
    """The config of a UNet2DConditionModel that computes the same as `unet`. Raises UserError if there is none.

    `size_features` is the number of features of each of the six sizes at the end of the vector (SDXL). By default it is
    that of the file that the U-Net came from, else SDXL's.
    """
    if reasons := obstacles(unet):
        raise UserError(f"the U-Net can't be a UNet2DConditionModel: {'; '.join(reasons)}.")
    spec = full_spec(unet)
    levels = len(unet.widths)
    attends = [level.attentions is not None for level in unet.down_blocks]
    table = unet.vector_dim and not spec.get("vector_bias", True)
    two = unet.add_embedding is not None
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": unet.in_channels + unet.concat_channels,
        "out_channels": unet.out_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": unet.widths,
        "layers_per_block": spec["blocks"],
        "attention_head_dim": per_level(spec["heads"], levels),
        "cross_attention_dim": unet.context_dim,
        "transformer_layers_per_block": per_level(spec["depth"], levels),
        "use_linear_projection": spec["linear_projection"],
        "norm_num_groups": unet.conv_norm_out.num_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if spec["scale_shift"] else "default",
        "dropout": spec["dropout"],
        "time_cond_proj_dim": unet.guidance_dim,
        "class_embed_type": "simple_projection" if unet.vector_dim and not table and not two else None,
        "num_class_embeds": unet.vector_dim if table else None,
        "projection_class_embeddings_input_dim": None if table else unet.vector_dim,
        **(_text_time(unet, size_features) if two else {}),
    }


def _text_time(unet: UNet, features: int | None) -> dict[str, Any]:
    features = features or getattr(unet, "size_features", None) or SIZE_FEATURES
    if (unet.vector_dim or 0) <= SIZES * features:
        raise UserError(
            f"the U-Net can't be a UNet2DConditionModel: {SIZES * features} of its vector's {unet.vector_dim} numbers "
            "are for sizes, which leaves none for a text."
        )
    return {"addition_embed_type": "text_time", "addition_time_embed_dim": features}


def weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our weights as diffusers', or diffusers' as ours, for `config`: the same function does both."""
    table = config.get("num_class_embeds") and not config.get("class_embed_type")
    return {k: v.T.contiguous() if table and k == CLASS_TABLE else v for k, v in state.items()}


def obstacles(unet: UNet) -> list[str]:
    """Why `unet` can't be a UNet2DConditionModel; empty if it can."""
    reasons = []
    if unet.context_dim is None:
        reasons.append("its attention reads no context, while UNet2DConditionModel always has cross-attention")
    if unet.patch > 1:
        reasons.append(f"patch={unet.patch}")
    defaults = signature_defaults(UNet)
    others = {k: v for k, v in full_spec(unet).items() if k not in _EXPORTED | {"class", "patch"}}
    return reasons + [f"{k}={v!r}" for k, v in others.items() if v != defaults.get(k)]


def full_spec(thing: Any) -> dict[str, Any]:
    """The spec of an object, including the defaults of arguments that weren't given."""
    return signature_defaults(type(thing)) | spec_of(thing)


def signature_defaults(cls: type) -> dict[str, Any]:
    """The default of each argument of a class's constructor."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def per_level(value: Any, levels: int) -> list[int]:
    """A list of one number per level, from such a list or from one number for all."""
    return [value] * levels if isinstance(value, int) else list(value)


def _attends(types: Any, way: str) -> list[bool]:
    names = {pattern.format(way): attends for pattern, attends in _ATTENDS.items()}
    if unknown := sorted(set(types) - set(names)):
        raise UserError(f"the U-Net can't be represented here: blocks {', '.join(unknown)}; known: {', '.join(names)}.")
    return [names[t] for t in types]


def _one(value: Any, name: str) -> Any:
    values = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(values) > 1:
        raise UserError(f"the U-Net can't be represented here: {name}={value} differs between levels.")
    return values.pop()


def _depths(value: Any, levels: int) -> list[int]:
    depths = per_level(value, levels)
    if any(not isinstance(d, int) for d in depths):
        raise UserError(f"the U-Net can't be represented here: transformer_layers_per_block={value}.")
    return depths


def _vector(config: Mapping[str, Any]) -> dict[str, Any]:
    kind, added = config.get("class_embed_type"), config.get("addition_embed_type")
    if added == "text_time" and kind is None and not config.get("num_class_embeds"):
        features, vector = (config.get(key) for key in _OF_SIZES)
        if features is None or vector is None:
            raise UserError(
                f"the U-Net can't be represented here: addition_embed_type without {' and '.join(_OF_SIZES)}."
            )
        if vector <= SIZES * features:
            raise UserError(
                f"the U-Net can't be represented here: projection_class_embeddings_input_dim={vector} leaves a text "
                f"nothing beside {SIZES} sizes of {features} numbers (addition_time_embed_dim)."
            )
        return {"vector_dim": vector, "vector_layers": 2}
    if added is not None:
        beside = "" if kind is None and not config.get("num_class_embeds") else " beside classes"
        raise UserError(f"the U-Net can't be represented here: addition_embed_type={added!r}{beside}.")
    if kind == "simple_projection":
        return {"vector_dim": config["projection_class_embeddings_input_dim"]}
    if kind is not None:
        raise UserError(f"the U-Net can't be represented here: class_embed_type={kind!r}.")
    if config.get("num_class_embeds"):
        return {"vector_dim": config["num_class_embeds"], "vector_bias": False}
    return {}
