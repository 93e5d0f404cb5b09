"""The names in CompVis's checkpoints (LDM, Stable Diffusion 1 and 2), as tables for networks of any depth."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ldm.interop.files.name_tables import by_prefix

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def encoder_modules(levels: int, blocks: int) -> dict[str, str]:
    """{ours: CompVis's} for the modules in the first half of the U-Net, which a ControlNet has too."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i in range(levels):
        for j in range(blocks):
            k = 1 + i * (blocks + 1) + j
            modules[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{k}.0"
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{k}.1"
        modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (blocks + 1)}.0.op"
    return modules


def unet_modules(attends: list[bool], blocks: int) -> dict[str, str]:
    """{ours: CompVis's} for all modules of a U-Net; `attends` tells which levels have transformers, finest first."""
    levels = len(attends)
    modules = encoder_modules(levels, blocks) | {"conv_norm_out": "out.0", "conv_out": "out.2"}
    for i in range(levels):
        for j in range(blocks + 1):
            k = i * (blocks + 1) + j
            modules[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{k}.0"
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{k}.1"
        place = 2 if attends[levels - 1 - i] else 1
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{i * (blocks + 1) + blocks}.{place}.conv"
    return modules


def controlnet_modules(levels: int, blocks: int, hints: int = 6) -> dict[str, str]:
    """{ours: CompVis's} for all modules of a ControlNet, with `hints` convolutions between the first and the last of
    its hint encoder."""
    modules = encoder_modules(levels, blocks) | {
        "controlnet_mid_block": "middle_block_out.0",
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": f"input_hint_block.{2 * hints + 2}",
    }
    outputs = levels * (
        blocks + 1
    )  # after conv_in, and after the blocks and the downsampler of each level; the last has no downsampler
    modules |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(outputs)}
    return modules | {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(hints)}


def vae_modules(levels: int, blocks: int) -> dict[str, str]:
    """{ours: CompVis's} for all modules of an autoencoder."""
    modules: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.mid_block.resnets.{j}": f"{side}.mid.block_{j + 1}" for j in (0, 1)}
        modules |= {f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1"}
        modules |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
    for i in range(levels):
        for j in range(blocks + 1):
            modules[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            modules[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{levels - 1 - i}.block.{j}"
        modules[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
        modules[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{levels - 1 - i}.upsample.conv"
    return modules


def ema_name(name: str) -> str:
    """The name under which a checkpoint stores the average of the weight `name`, which begins with `model.`."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def in_shapes_of(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the shapes of `wanted`: 1x1 convolutions and linear layers are converted into each other."""
    return {name: _in_shape_of(tensor, wanted.get(name)) for name, tensor in state.items()}


def _in_shape_of(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    if wanted is None or tensor.shape == wanted.shape:
        return tensor
    squeezed = tensor.shape[2:] == (1, 1) and wanted.ndim == 2
    spread = wanted.shape[2:] == (1, 1) and tensor.ndim == 2
    return tensor.reshape(wanted.shape) if (squeezed or spread) and tensor.numel() == wanted.numel() else tensor


def open_clip_modules(layers: int) -> dict[str, str]:
    """{transformers': OpenCLIP's} for the modules of CLIP's text model (Stable Diffusion 2).

    Queries, keys and values are missing: OpenCLIP has them in one matrix, `attn.in_proj`.
    """
    modules = {f"encoder.layers.{i}": f"model.transformer.resblocks.{i}" for i in range(layers)}
    return modules | {"final_layer_norm": "model.ln_final", "embeddings.token_embedding": "model.token_embedding"}


def indices(names: Iterable[str], prefix: str) -> list[int]:
    """The distinct numbers that follow `prefix` in `names`, in increasing order."""
    tails = (name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix))
    return sorted({int(tail) for tail in tails if tail.isdigit()})


def unet_table(names: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, str]:
    """{ours: CompVis's} for every weight of a U-Net or ControlNet. Inside modules, only the parts of residual blocks
    have different names."""
    blocks = {name for name in names if ".resnets." in name}
    table = by_prefix(blocks, modules, UNET_RESNET)
    return table | by_prefix(set(names) - blocks, modules, {})
