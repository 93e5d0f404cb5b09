"""What a single Stable Diffusion 1 or 2 file can hold. It has no settings, so whatever the names and shapes of the
weights don't show must agree with what all readers assume."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ldm.conditioning import FrozenText
from ldm.diffusion import Eps, Schedule, V
from ldm.interop.parts import inpainting, sdxl, sdxl_file, unet_config, vae_config
from ldm.networks import AutoencoderKL, AutoencoderTiny, UNet, VQModel

GROUPS, HEADS, HEAD_DIM = 32, 8, 64
_ACTIVATIONS = {"quick_gelu": "1", "gelu": "2"}  # of the text encoder, by the version whose names it then has
_UNET = {"channels": [320, 640, 1280, 1280], "blocks": 2, "attention": [True, True, True, False], "depth": [1] * 4}
_UNETS = {
    "1": {**_UNET, "context_dim": 768, "linear_projection": False, "scale_shift": False},
    "2": {**_UNET, "context_dim": 1024, "linear_projection": True, "scale_shift": False},
    "XL": {
        "channels": [320, 640, 1280], "blocks": 2, "attention": [False, True, True], "depth": [1, 2, 10],
        "context_dim": 2048, "linear_projection": True, "scale_shift": False, "vector_dim": 2816, "vector_layers": 2,
    },
}  # fmt: skip
_VAE = {"channels": [128, 256, 512, 512], "blocks": 2, "attention": True, "latent_channels": 4, "in_channels": 3}
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
_CLIPS = {
    "1": _CLIP | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "2": _CLIP | {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096},
    "XL, second": _CLIP
    | {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120},
}
_CLIPS["XL, first"] = _CLIPS["1"]


def obstacles(model: Any) -> list[str]:
    """Why a whole model can't be a single Stable Diffusion file, part by part, with options that would make it one;
    empty if it can.
    """
    found = [*unet_obstacles(model.denoiser.network), *vae_obstacles(model.first_stage)]
    if sdxl.encoders_of(model.conditioner):
        found += sdxl_file.obstacles(model.denoiser.network, model.conditioner)
    else:
        found += text_obstacles(model)
    return [*found, *inpainting.obstacles(model.conditioner), *_of_noise(model.denoiser.parameterization)]


def unet_obstacles(network: nn.Module) -> list[str]:
    """Why a network isn't a Stable Diffusion U-Net, with options that would make it one; empty if it is."""
    if not isinstance(network, UNet):
        return [f"the network is a {type(network).__name__} (train with network=unet)"]
    reasons = [f"the U-Net: {reason}" for reason in unet_config.obstacles(network)]
    if (groups := network.conv_norm_out.num_groups) != GROUPS:
        reasons.append(f"the U-Net's norms have {groups} groups (network.groups=32, widths that 32 divides)")
    spec = unet_config.full_spec(network)
    levels = range(len(network.widths))
    heads = unet_config.per_level(spec["heads"], len(levels))
    attends = [level.attentions is not None for level in network.down_blocks]
    wanted = [w // HEAD_DIM if spec["linear_projection"] else HEADS for w in network.widths]
    odd = [i for i in levels if (attends[i] or i == levels[-1]) and heads[i] != wanted[i]]
    for i in odd[:1]:
        rule = "64 channels a head" if spec["linear_projection"] else "8 heads"
        reasons.append(f"the U-Net has {heads[i]} heads at level {i}, but readers assume {rule} (network.heads=)")
    return reasons


def vae_obstacles(first_stage: nn.Module) -> list[str]:
    """Why a first stage isn't a Stable Diffusion autoencoder; empty if it is."""
    if isinstance(first_stage, (VQModel, AutoencoderTiny)):
        return [f"its first stage is {type(first_stage).__name__}, not AutoencoderKL (train with vae=kl_f8)"]
    if not isinstance(first_stage, AutoencoderKL):
        return ["it generates pixels, without an autoencoder (train on one: vae=kl_f8)"]
    reasons = [f"the autoencoder: {reason} (train with vae=kl_f8)" for reason in vae_config.obstacles(first_stage)]
    if (groups := first_stage.encoder.conv_norm_out.num_groups) != GROUPS:
        reasons.append(f"the autoencoder's norms have {groups} groups (vae=kl_f8, or vae.groups=32)")
    return reasons


def text_obstacles(model: Any) -> list[str]:
    """Why a model's conditions aren't Stable Diffusion's; empty if they are."""
    parts = inpainting.others(model.conditioner)
    text = next(iter(parts.values()), None)
    if len(parts) != 1 or not isinstance(text, FrozenText):
        kinds = ", ".join(parts) or "nothing"
        return [f"its conditions are {kinds} (conditioner=frozen_text with the text encoder of a CLIP)"]
    if type(text.encoder).__name__ != "CLIPTextModel":
        return [f"its text encoder is a {type(text.encoder).__name__} (conditioner.text.path= the one of a CLIP)"]
    config, reasons = text.encoder.config, []
    if text.masked or text.pooled:
        reasons.append("its text is masked or pooled (conditioner.text.masked=false conditioner.text.pooled=false)")
    if text.clip_skip != 1:
        reasons.append("its text is read before the encoder's last layer (conditioner.text.clip_skip=1)")
    if (length := text.limit(text.tokenizer)) != config.max_position_embeddings:
        wanted = config.max_position_embeddings
        reasons.append(f"its captions are padded to {length} tokens (conditioner.text.length={wanted})")
    if config.hidden_act not in _ACTIVATIONS:
        reasons.append(f"its text encoder's activation is {config.hidden_act} (quick_gelu or gelu)")
    return reasons


def _of_noise(parameterization: Any) -> list[str]:
    if type(parameterization) not in (Eps, V):
        return [f"it predicts as {type(parameterization).__name__} (diffusion=eps, v or v_zero_snr)"]
    found = parameterization.schedule
    usual = Schedule(zero_terminal_snr=found.zero_terminal_snr)
    if found.timesteps == usual.timesteps and torch.allclose(found.alphas_cumprod, usual.alphas_cumprod, rtol=1e-6):
        return []
    return ["its noise schedule isn't Stable Diffusion's (diffusion=eps, v or v_zero_snr)"]


def version_of(model: Any) -> str:
    """ "1" where the text encoder has CLIP's own names, "2" for OpenCLIP's, "XL" for both."""
    if sdxl.encoders_of(model.conditioner):
        return "XL"
    (text,) = inpainting.others(model.conditioner).values()
    return _ACTIVATIONS[text.encoder.config.hidden_act]


def differences(model: Any, version: str) -> list[str]:
    """How sizes differ from Stable Diffusion `version`. ldm and diffusers read any sizes, web UIs only those."""
    network, first_stage = _sizes(model.denoiser.network), _sizes(model.first_stage)
    encoders = sdxl.encoders_of(model.conditioner) or list(inpainting.others(model.conditioner).values())
    wanted = ("XL, first", "XL, second") if version == "XL" else (version,)
    texts = [
        _different("text encoder", part.encoder.config.to_dict(), _CLIPS[own])
        for part, own in zip(encoders, wanted, strict=True)
    ]
    return [
        *_different("U-Net", network, _UNETS[version]),
        *_different("autoencoder", first_stage, _VAE),
        *(line for lines in texts for line in lines),
    ]


def _sizes(module: Any) -> dict[str, Any]:
    """The spec of a U-Net or an autoencoder, with sizes by level."""
    spec = unet_config.full_spec(module)
    if isinstance(module, AutoencoderKL):
        widths = [stage.resnets[0].conv1.out_channels for stage in module.encoder.down_blocks]  # type: ignore[index,union-attr]
        return spec | {"channels": widths}
    attends = [level.attentions is not None for level in module.down_blocks]
    depth = unet_config.per_level(spec["depth"], len(module.widths))
    return spec | {"channels": module.widths, "attention": attends, "depth": depth}


def _different(part: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [f"{part} {key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
