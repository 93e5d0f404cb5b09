"""The settings of diffusers' AutoencoderKL and of ours, converted in both directions. The names of weights are the
same.

We whiten latents per channel, outside of the autoencoder. Stock pipelines have only one factor, so any other whitening
is folded into `quant_conv` and `post_quant_conv`, which are linear: z' = (z - mean) / std.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.interop.files.name_tables import refuse, refuse_twice
from ldm.interop.first_stages.conv_autoencoder import shared_config, shared_spec
from ldm.interop.parts.unet_config import full_spec, signature_defaults
from ldm.networks import AutoencoderKL

_KNOWN = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
    "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
    "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv",
)  # fmt: skip
_FIXED = {
    "act_fn": ("silu", "swish"),
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
}
_EXPORTED = {
    "class", "in_channels", "latent_channels", "channels", "multipliers", "blocks", "attention", "groups",
    "quant_convs",
}  # fmt: skip
# diffusers before 0.15
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our AutoencoderKL that computes the same as diffusers' with `config`."""
    refuse(config, _KNOWN, _FIXED, "the autoencoder")
    return {
        "class": "AutoencoderKL",
        **shared_spec(config),
        "latent_channels": config.get("latent_channels", 4),
        **({} if any(_has_convs(config)) else {"quant_convs": False}),
    }


def _has_convs(config: Mapping[str, Any]) -> tuple[bool, bool]:
    return bool(config.get("use_quant_conv", True)), bool(config.get("use_post_quant_conv", True))


def to_diffusers(
    vae: AutoencoderKL, sample_size: int = 32, scaling_factor: float = 1.0, folded: bool = False
) -> dict[str, Any]:
    """The config of a diffusers AutoencoderKL that computes the same as `vae`. Raises UserError if there is none.

    `folded` weights (see `fold`) have quantisation convolutions even if `vae` has none.
    """
    if reasons := obstacles(vae):
        raise UserError(f"the autoencoder can't be a stock AutoencoderKL: {'; '.join(reasons)}.")
    convs = folded or full_spec(vae)["quant_convs"]
    return {
        "_class_name": "AutoencoderKL",
        **shared_config(vae, sample_size, scaling_factor),
        "latent_channels": vae.latent_channels,
        **({} if convs else {"use_quant_conv": False, "use_post_quant_conv": False}),
        "force_upcast": False,
        "mid_block_add_attention": vae.encoder.mid_block.attentions is not None,
        "act_fn": "silu",
    }


def obstacles(vae: AutoencoderKL) -> list[str]:
    """Why `vae` can't be a stock AutoencoderKL; empty if it can."""
    defaults = signature_defaults(AutoencoderKL)
    others = {k: v for k, v in full_spec(vae).items() if k not in _EXPORTED}
    return [f"{k}={v!r}" for k, v in others.items() if v != defaults.get(k)]


def weights_from_diffusers(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' weights as ours: attention has today's names, and a single missing quantisation convolution becomes
    the identity.

    Raises UserError for a weight under two names, and for a convolution that the config says is missing.
    """
    table = {name: _todays(name) for name in state}
    refuse_twice(table, "the autoencoder")
    ours = {table[name]: _linear(name, tensor) for name, tensor in state.items()}
    encodes, decodes = _has_convs(config)
    if encodes == decodes:
        return ours
    lacking = "post_quant_conv" if encodes else "quant_conv"
    if f"{lacking}.weight" in ours or f"{lacking}.bias" in ours:
        raise UserError(f"the autoencoder: the config says use_{lacking}=false, and the weights have one: correct it.")
    return ours | _identity(lacking, config.get("latent_channels", 4))


def _todays(name: str) -> str:
    """The name that diffusers gives a weight today."""
    words = name.split(".")
    if _is_old_attention(words):
        words[-2] = _OLD_ATTENTION[words[-2]]
    return ".".join(words)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """A weight of attention as a matrix, where an old file has it as a convolution of one pixel."""
    return tensor.flatten(1) if _is_old_attention(name.split(".")) and tensor.ndim == 4 else tensor


def _is_old_attention(words: list[str]) -> bool:
    return "attentions" in words[:-2] and words[-2] in _OLD_ATTENTION


def _identity(name: str, z: int) -> dict[str, Tensor]:
    """A quantisation convolution of `z` latent channels that changes nothing."""
    width = 2 * z if name == "quant_conv" else z
    return {f"{name}.weight": torch.eye(width)[..., None, None], f"{name}.bias": torch.zeros(width)}


def scaling_config(scaling: tuple[list[float], list[float]] | None) -> dict[str, Any]:
    """The settings of a config that whitens latents to (z - mean) / std: one factor and shift where these suffice."""
    if scaling is None:
        return {}
    mean, std = scaling
    if len({*mean}) > 1 or len({*std}) > 1:
        return {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}
    return {"scaling_factor": 1 / std[0], "shift_factor": mean[0] or None}


def stock_factor(mean: Tensor, std: Tensor) -> float | None:
    """The scaling_factor that equals this whitening, or None if a single number can't."""
    plain = bool((mean == 0).all()) and bool((std == std[0]).all())
    return 1 / std[0].item() if plain else None


def fold(state: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The weights of an autoencoder whose latents are whitened: z' = (z - mean) / std, ln var' = ln var - 2 ln std."""
    mean, std = mean.double(), std.double()
    scale = torch.cat([1 / std, torch.ones_like(std)])  # (2 z,)
    offset = torch.cat([-mean / std, -2 * std.log()])
    if "quant_conv.weight" not in state:
        state = {**state, **_identity("quant_conv", len(mean)), **_identity("post_quant_conv", len(mean))}
    folded = dict(state)
    w, b = state["quant_conv.weight"].double(), state["quant_conv.bias"].double()
    folded["quant_conv.weight"] = (w * scale[:, None, None, None]).to(torch.float32)
    folded["quant_conv.bias"] = (b * scale + offset).to(torch.float32)
    w, b = state["post_quant_conv.weight"].double(), state["post_quant_conv.bias"].double()
    folded["post_quant_conv.weight"] = (w * std[None, :, None, None]).to(torch.float32)
    folded["post_quant_conv.bias"] = (b + w[:, :, 0, 0] @ mean).to(torch.float32)
    return folded
