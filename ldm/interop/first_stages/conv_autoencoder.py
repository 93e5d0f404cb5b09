"""The settings that diffusers' AutoencoderKL and VQModel share, converted in both directions."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.parts.unet_config import full_spec


def shared_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of our spec, from diffusers' `config`. Raises UserError if in- and output have different channels."""
    channels = config.get("in_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise UserError(f"the autoencoder can't be represented here: out_channels={config.get('out_channels')}.")
    return {
        "in_channels": channels,
        "channels": list(config.get("block_out_channels", (64,))),
        "blocks": config.get("layers_per_block", 1),
        "attention": bool(config.get("mid_block_add_attention", True)),
        "groups": config.get("norm_num_groups", 32),
    }


def shared_config(vae: Any, sample_size: int, scaling_factor: float) -> dict[str, Any]:
    """Those of diffusers' config, from our autoencoder."""
    widths = [stage.resnets[0].conv1.out_channels for stage in vae.encoder.down_blocks]
    return {
        "in_channels": vae.in_channels,
        "out_channels": vae.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": full_spec(vae)["blocks"],
        "norm_num_groups": vae.encoder.conv_norm_out.num_groups,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
    }
