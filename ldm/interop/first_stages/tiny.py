"""The settings of diffusers' AutoencoderTiny and of ours, converted in both directions. The names of weights are the
same."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.name_tables import refuse
from ldm.interop.parts.unet_config import full_spec
from ldm.networks import AutoencoderTiny

_KNOWN = (
    "in_channels", "out_channels", "latent_channels", "encoder_block_out_channels", "decoder_block_out_channels",
    "num_encoder_blocks", "num_decoder_blocks", "block_out_channels", "scaling_factor", "shift_factor", "force_upcast",
)  # fmt: skip
# The last two are for latents stored as bytes, and change neither encoding nor decoding.
_FIXED = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
}


def from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our AutoencoderTiny that computes the same as diffusers' with `config`."""
    refuse(config, _KNOWN, _FIXED, "the autoencoder")
    channels = config.get("in_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise UserError(f"the autoencoder can't be represented here: out_channels={config.get('out_channels')}.")
    width, wide = (_width(config, f"{half}_block_out_channels") for half in ("encoder", "decoder"))
    return {
        "class": "AutoencoderTiny",
        "in_channels": channels,
        "latent_channels": config.get("latent_channels", 4),
        "channels": width,
        "encoder_blocks": list(config.get("num_encoder_blocks", (1, 3, 3, 3))),
        "decoder_blocks": list(config.get("num_decoder_blocks", (3, 3, 3, 1))),
        **({} if wide == width else {"decoder_channels": wide}),
    }


def _width(config: Mapping[str, Any], key: str) -> int:
    """The width that all levels have."""
    widths = list(config.get(key, (64, 64, 64, 64)))
    if len({*widths}) != 1:
        raise UserError(f"the autoencoder can't be represented here: {key}={widths}; its levels must be equally wide.")
    return widths[0]


def to_diffusers(vae: AutoencoderTiny, scaling_factor: float = 1.0) -> dict[str, Any]:
    """The config of a diffusers AutoencoderTiny that computes the same as `vae`."""
    spec = full_spec(vae)
    levels, wide = len(spec["encoder_blocks"]), spec["decoder_channels"] or spec["channels"]
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": vae.in_channels,
        "out_channels": vae.in_channels,
        "encoder_block_out_channels": [spec["channels"]] * levels,
        "decoder_block_out_channels": [wide] * levels,
        "block_out_channels": [wide] * levels,
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "latent_channels": vae.latent_channels,
        "upsampling_scaling_factor": 2,
        "num_encoder_blocks": list(spec["encoder_blocks"]),
        "num_decoder_blocks": list(spec["decoder_blocks"]),
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "force_upcast": False,
        "scaling_factor": scaling_factor,
    }
