"""The settings of diffusers' VQModel and of ours, converted in both directions. The names of weights are the same."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.name_tables import refuse
from ldm.interop.first_stages.conv_autoencoder import shared_config, shared_spec
from ldm.interop.parts.unet_config import full_spec, signature_defaults
from ldm.networks import VQModel

_KNOWN = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
    "sample_size", "scaling_factor", "num_vq_embeddings", "vq_embed_dim", "mid_block_add_attention", "force_upcast",
)  # fmt: skip
_FIXED = {
    "act_fn": ("silu", "swish"),
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
    "norm_type": "group",
}
_UNLIKE = ("stem", "shortcut")  # options that only ours has


def from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our VQModel that computes the same as diffusers' with `config`."""
    refuse(config, _KNOWN, _FIXED, "the autoencoder")
    hidden, z = config.get("latent_channels", 3), latent_channels(config)
    return {
        "class": "VQModel",
        **shared_spec(config),
        "latent_channels": z,
        "codes": config.get("num_vq_embeddings", 256),
        **({} if hidden == z else {"hidden": hidden}),
    }


def latent_channels(config: Mapping[str, Any]) -> int:
    """The channels of latents, which are those of the codes."""
    dim = config.get("vq_embed_dim")
    return config.get("latent_channels", 3) if dim is None else dim


def to_diffusers(vae: VQModel, sample_size: int = 32, scaling_factor: float = 1.0) -> dict[str, Any]:
    """The config of a diffusers VQModel that computes the same as `vae`. Raises UserError if there is none."""
    if reasons := obstacles(vae):
        raise UserError(f"the autoencoder can't be a stock VQModel: {'; '.join(reasons)}.")
    hidden = vae.encoder.conv_out.out_channels
    return {
        "_class_name": "VQModel",
        **shared_config(vae, sample_size, scaling_factor),
        "act_fn": "silu",
        "latent_channels": hidden,
        "num_vq_embeddings": len(vae.quantize.embedding.weight),
        "vq_embed_dim": None if hidden == vae.latent_channels else vae.latent_channels,
        "norm_type": "group",
        "mid_block_add_attention": vae.encoder.mid_block.attentions is not None,
        "force_upcast": False,
    }


def obstacles(vae: VQModel) -> list[str]:
    """Why `vae` can't be a stock VQModel; empty if it can."""
    spec, defaults = full_spec(vae), signature_defaults(VQModel)
    return [f"{key}={spec[key]!r}" for key in _UNLIKE if spec[key] != defaults[key]]
