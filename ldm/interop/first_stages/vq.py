"""The settings of diffusers' VQModel and of ours, converted in both directions. The names of weights are the same."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.name_tables import refuse
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
    channels, hidden = config.get("in_channels", 3), config.get("latent_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise UserError(f"the autoencoder can't be represented here: out_channels={config.get('out_channels')}.")
    z = latent_channels(config)
    return {
        "class": "VQModel",
        "in_channels": channels,
        "latent_channels": z,
        "codes": config.get("num_vq_embeddings", 256),
        "channels": list(config.get("block_out_channels", (64,))),
        "blocks": config.get("layers_per_block", 1),
        "attention": bool(config.get("mid_block_add_attention", True)),
        "groups": config.get("norm_num_groups", 32),
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
    widths = [stage.resnets[0].conv1.out_channels for stage in vae.encoder.down_blocks]  # type: ignore[index,union-attr]
    hidden = vae.encoder.conv_out.out_channels
    return {
        "_class_name": "VQModel",
        "in_channels": vae.in_channels,
        "out_channels": vae.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": full_spec(vae)["blocks"],
        "act_fn": "silu",
        "latent_channels": hidden,
        "sample_size": sample_size,
        "num_vq_embeddings": len(vae.quantize.embedding.weight),
        "norm_num_groups": vae.encoder.conv_norm_out.num_groups,
        "vq_embed_dim": None if hidden == vae.latent_channels else vae.latent_channels,
        "scaling_factor": scaling_factor,
        "norm_type": "group",
        "mid_block_add_attention": vae.encoder.mid_block.attentions is not None,
        "force_upcast": False,
    }


def obstacles(vae: VQModel) -> list[str]:
    """Why `vae` can't be a stock VQModel; empty if it can."""
    spec, defaults = full_spec(vae), signature_defaults(VQModel)
    return [f"{key}={spec[key]!r}" for key in _UNLIKE if spec[key] != defaults[key]]
