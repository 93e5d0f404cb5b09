"""The settings of diffusers' ControlNetModel and of our ControlNet, converted in both directions.

The names of weights are the same, and a table maps them to CompVis's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm import artifact
from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.interop.files.name_tables import bijection, inverse, rename
from ldm.interop.parts import compvis, compvis_shapes, unet_config
from ldm.interop.parts.compvis import indices
from ldm.networks import ControlNet
from ldm.networks.controlnet import HINT_WIDTHS

COMPVIS = "control_model."
_TABLE = {"num_class_embeds": True}  # CompVis has a table of classes too
_HINT = ("conditioning_channels", "conditioning_embedding_out_channels")
_FIXED = {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False}
_OF_THE_WAY_UP = ("out_channels", "up_block_types", "sample_size", "dropout")


def from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our ControlNet that computes the same as a ControlNetModel with `config`.

    One that was made for an inpainting base has all channels of that base as its own.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) not in (value, None):
            raise UserError(f"the ControlNet can't be represented here: {key}={config[key]!r}.")
    rest = {key: value for key, value in config.items() if key not in (*_HINT, *_FIXED)}
    down = list(config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)))
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    channels = config.get("in_channels", 4)
    network = unet_config.from_diffusers(
        {**rest, "down_block_types": down, "up_block_types": mirrored, "out_channels": channels}
    )
    widths = list(config.get("conditioning_embedding_out_channels") or HINT_WIDTHS)
    return {
        "class": "ControlNet",
        "network": network,
        "hint_channels": config.get("conditioning_channels", 3),
        "factor": 2 ** (len(widths) - 1),
        "hint_widths": widths,
    }


def to_diffusers(net: ControlNet, size_features: int | None = None) -> dict[str, Any]:
    """The config of a ControlNetModel that computes the same as `net`. Raises UserError if there is none.

    `size_features` is as for `unet_config.to_diffusers`.
    """
    if reasons := obstacles(net):
        raise UserError(f"the ControlNet can't be a ControlNetModel: {'; '.join(reasons)}.")
    features = size_features or getattr(net, "size_features", None)
    whole = unet_config.to_diffusers(_network(net), size_features=features)
    config = {k: v for k, v in whole.items() if k not in _OF_THE_WAY_UP}
    return config | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": net.hint_channels,
        "conditioning_embedding_out_channels": net.hint_widths,
        **_FIXED,
    }


def weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our weights as diffusers', or diffusers' as ours, for `config`: the same function does both."""
    return unet_config.weights(state, config)


def obstacles(net: ControlNet) -> list[str]:
    """Why `net` can't be a ControlNetModel; empty if it can."""
    network = _network(net)
    reasons = unet_config.obstacles(network)
    if net.class_embedding is not None and net.class_embedding.bias is not None:
        reasons.append("it reads a vector of conditions, while ControlNetModel has a table of classes")
    if net.factor & (net.factor - 1):
        reasons.append(f"its control images are {net.factor} times the latents' size, which isn't a power of two")
    return reasons


def compvis_names(net: ControlNet) -> dict[str, str]:
    """{ours: CompVis's} for every weight, without the prefix `control_model.` that their files put before them."""
    blocks = len(net.down_blocks[0].resnets)
    modules = compvis.controlnet_modules(len(net.widths), blocks, 2 * (len(net.hint_widths) - 1))
    return bijection(compvis.unet_table(net.state_dict(), modules).items())


def to_compvis(net: ControlNet) -> dict[str, Tensor]:
    """The weights under CompVis's names."""
    state = weights(net.state_dict(), _TABLE)
    return {COMPVIS + name: tensor for name, tensor in rename(state, compvis_names(net), "the ControlNet").items()}


def from_compvis(
    state: Mapping[str, Tensor], where: str, heads: int | None = None, head_dim: int | None = None
) -> ControlNet:
    """The ControlNet in a CompVis checkpoint; for `heads` and `head_dim` see `compvis_shapes.unet_spec`."""
    state = {name.removeprefix(COMPVIS): tensor for name, tensor in state.items() if name.startswith(COMPVIS)}
    channels = state["input_blocks.0.0.weight"].shape[1]
    network, _ = compvis_shapes.unet_spec({**state, "out.2.weight": torch.empty(channels)}, heads, head_dim)
    hint = [state[f"input_hint_block.{i}.weight"] for i in indices(state, "input_hint_block.")]
    widths = [hint[0].shape[0], *(weight.shape[0] for weight in hint[2:-1:2])]
    spec = {
        "class": "ControlNet",
        "network": network,
        "hint_channels": hint[0].shape[1],
        "factor": 2 ** (len(widths) - 1),
        "hint_widths": widths,
    }
    with torch.device("meta"):
        net: ControlNet = build(spec)
    ours = weights(rename(state, inverse(compvis_names(net)), where), _TABLE)
    shaped = compvis.in_shapes_of(ours, net.state_dict())
    return artifact.restore({"format": artifact.FORMAT, "model": spec}, shaped, where)  # type: ignore[return-value]


def _network(net: ControlNet) -> Any:
    """The U-Net whose encoder `net` copies, without memory, to read its config from."""
    with torch.device("meta"):
        return build(net._spec["network"])
