"""What a CompVis checkpoint is, by the names and shapes of its weights: it has no config."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError
from ldm.interop.parts.compvis import indices


def unet_spec(
    state: Mapping[str, Tensor], heads: int | None, head_dim: int | None
) -> tuple[dict[str, Any], list[bool]]:
    """The spec of our UNet for CompVis's weights (prefix removed), and which levels have attention.

    The weights don't show head counts: unless `heads` or `head_dim` are given, they are 8 everywhere, as in Stable
    Diffusion 1, or one per 64 channels where the projections are linear, as in Stable Diffusion 2.
    """
    refuse_unknown(state)
    blocks = _blocks(state)
    starts = range(1, len(indices(state, "input_blocks.")), blocks + 1)  # the first block of each level
    widths = [state[f"input_blocks.{k}.0.out_layers.3.weight"].shape[0] for k in starts]
    attends = [f"input_blocks.{k}.1.norm.weight" in state for k in starts]
    out_channels, in_channels = state["out.2.weight"].shape[0], state["input_blocks.0.0.weight"].shape[1]
    middle = "middle_block.1.transformer_blocks."
    linear = state["middle_block.1.proj_in.weight"].ndim == 2
    context = state.get(f"{middle}0.attn2.to_k.weight")
    last = len(widths) - 1
    _check_heads(widths, attends, heads, head_dim)
    counts = [w // (head_dim or 64) if head_dim or (linear and not heads) else heads or 8 for w in widths]
    depths = [len(indices(state, f"input_blocks.{k}.1.transformer_blocks.")) or 1 for k in starts]
    depths[last] = len(indices(state, middle))
    spec = {
        "class": "UNet",
        "in_channels": out_channels,
        "concat_channels": in_channels - out_channels,
        "channels": widths,
        "blocks": blocks,
        "attention": attends,
        "depth": depths,
        "heads": [h if a or i == last else 1 for i, (h, a) in enumerate(zip(counts, attends, strict=True))],
        "context_dim": None if context is None else context.shape[1],
        "scale_shift": state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
        "linear_projection": linear,
        "groups": 32,
    }
    if (table := state.get("label_emb.weight")) is not None:
        spec |= {"vector_dim": table.shape[0], "vector_bias": False}
    if (first := state.get("label_emb.0.0.weight")) is not None:
        spec |= {"vector_dim": first.shape[1], "vector_layers": 2}
    return spec, attends


def _check_heads(widths: list[int], attends: list[bool], heads: int | None, head_dim: int | None) -> None:
    """Refuses `heads` together with `head_dim`, and heads that don't divide a width."""
    if heads and head_dim:
        raise UserError(f"heads={heads} and head_dim={head_dim} set the same thing: give one of them.")
    for i, (width, attend) in enumerate(zip(widths, attends, strict=True)):
        if (attend or i == len(widths) - 1) and (width % (head_dim or 1) or width % (heads or 1)):
            given = f"head_dim={head_dim}" if head_dim else f"heads={heads}"
            raise UserError(f"{given} doesn't divide the U-Net's width {width}: give heads= or head_dim= that does.")


def refuse_unknown(state: Mapping[str, Tensor]) -> None:
    """Refuses U-Nets of CompVis that our UNet can't represent, and says what differs."""
    if any(".qkv." in name for name in state):
        raise UserError("the U-Net can't be represented here: its attention blocks aren't transformers (qkv).")
    if "middle_block.1.proj_in.weight" not in state:
        raise UserError("the U-Net can't be represented here: there is no transformer in its middle.")


def vae_spec(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The spec of our AutoencoderKL, or with a codebook our VQModel, for CompVis's weights (prefix removed)."""
    levels = indices(state, "encoder.down.")
    if not levels:
        raise UserError("the autoencoder can't be represented here: it isn't an autoencoder of CompVis's kind.")
    if odd := [i for i in levels if any(n.startswith(f"encoder.down.{i}.attn.") for n in state)]:
        raise UserError(
            f"the autoencoder can't be represented here: it has attention at level {odd[0]}, but ours has it "
            "only in the middle."
        )
    sizes = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "channels": [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in levels],
        "blocks": len(indices(state, "encoder.down.0.block.")),
        "attention": "encoder.mid.attn_1.q.weight" in state,
        "groups": 32,
    }
    if any(name.startswith("quantize.") for name in state):
        return {"class": "VQModel", **_codebook_sizes(state), **sizes}
    moments, z = state["encoder.conv_out.weight"].shape[0], state["decoder.conv_in.weight"].shape[1]
    convs = (
        "quant_conv.weight" in state or "post_quant_conv.weight" in state
    )  # Stable Diffusion 3's and Flux's have none
    if moments != (state["quant_conv.weight"].shape[0] if convs else 2 * z):
        raise UserError("the autoencoder can't be represented here: embed_dim isn't z_channels.")
    return {
        "class": "AutoencoderKL",
        "latent_channels": z,
        **sizes,
        **({} if convs else {"quant_convs": False}),
    }


def _codebook_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of a VQModel's codebook. Raises UserError for those of other kinds, such as GumbelVQ's."""
    if "quantize.embedding.weight" not in state:
        raise UserError("the autoencoder can't be represented here: its codebook has no quantize.embedding.weight.")
    codes, z = state["quantize.embedding.weight"].shape
    hidden = state["encoder.conv_out.weight"].shape[0]
    if hidden != state["decoder.conv_in.weight"].shape[1]:
        raise UserError("the autoencoder can't be represented here: encoder and decoder have different z_channels.")
    return {"latent_channels": z, "codes": codes, **({} if hidden == z else {"hidden": hidden})}


def _blocks(state: Mapping[str, Tensor]) -> int:
    """Residual blocks per level: those before the first downsampling, or all if there is a single level."""
    ops = [k for k in indices(state, "input_blocks.") if f"input_blocks.{k}.0.op.weight" in state]
    return (ops[0] if ops else len(indices(state, "input_blocks."))) - 1
