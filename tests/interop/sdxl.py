"""Stable Diffusion XL's sizes, as its published configs have them, and the names in its single file."""

from pathlib import Path

import torch

from tests.interop.configs import sdxl, vae
from tests.interop.models import diffusers, randomised, transformers, write_two_encoders

UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def write_small(folder: Path) -> Path:
    """A random StableDiffusionXLPipeline of 16x16: heads of 64 channels and norms of 32 groups, as no file says."""
    torch.manual_seed(0)
    options = {"block_out_channels": (32, 64), "attention_head_dim": (1, 1), "norm_num_groups": 32}
    unet = randomised(
        diffusers.UNet2DConditionModel(
            **sdxl(*("", "CrossAttn"), text=20, features=8, cross_attention_dim=40, transformer_layers_per_block=(1, 2))
            | options
        ),
        0.02,
    )
    vae_model = randomised(
        diffusers.AutoencoderKL(**vae(32, 32, norm_num_groups=32, scaling_factor=0.13025, force_upcast=True))
    )
    write_two_encoders(folder)
    parts = {}
    for suffix, cls in (("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")):
        parts[f"text_encoder{suffix}"] = getattr(transformers, cls).from_pretrained(folder / f"text_encoder{suffix}")
        parts[f"tokenizer{suffix}"] = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    pipe = diffusers.StableDiffusionXLPipeline(unet=unet, vae=vae_model, scheduler=scheduler, **parts)
    pipe.save_pretrained(folder)
    return folder


# The names and shapes in sd_xl_base's single file, transcribed from the lists in the repository
# arenasys/stable-diffusion-webui-model-toolkit, components/UNET-XL-SD.txt and CLIP-XL-SD.txt (the second encoder's) at
# commit 85503955d3a117d7fa3ba37da223b411944b21ae, VAE-v1-SD.txt at f51c956880eeb08928b3ba520373c1e18f6580eb (counted),
# LoRA-XL-UNET.txt at 26b982791187689fdda5f891e6368aaaa79d8ee3 (counted), by how many characters these files have.
CHARACTERS = {"unet": 101_976, "clip": 18_913, "vae": 10_149, "lora": 184_846}
Shapes = dict[str, tuple[int, ...]]


def listed(shapes: Shapes) -> str:
    """As the repository's files have them: a line each, sorted, without a last line's end."""
    return "\n".join(f"{name} [{','.join(map(str, shape))}]" for name, shape in sorted(shapes.items()))


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def _resnet(name: str, a: int, b: int) -> Shapes:
    layers = _layer(f"{name}.in_layers.0", a) | _layer(f"{name}.in_layers.2", b, a, 3, 3)
    layers |= _layer(f"{name}.emb_layers.1", b, 1280)
    layers |= _layer(f"{name}.out_layers.0", b) | _layer(f"{name}.out_layers.3", b, b, 3, 3)
    return layers | (_layer(f"{name}.skip_connection", b, a, 1, 1) if a != b else {})


def _transformers(name: str, c: int, depth: int) -> Shapes:
    layers = _layer(f"{name}.norm", c) | _layer(f"{name}.proj_in", c, c) | _layer(f"{name}.proj_out", c, c)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, width in (("attn1", c), ("attn2", 2048)):
            layers |= _layer(f"{block}.{attention}.to_q", c, c, bias=False)
            layers |= _layer(f"{block}.{attention}.to_k", c, width, bias=False)
            layers |= _layer(f"{block}.{attention}.to_v", c, width, bias=False)
            layers |= _layer(f"{block}.{attention}.to_out.0", c, c)
        layers |= _layer(f"{block}.ff.net.0.proj", 8 * c, c) | _layer(f"{block}.ff.net.2", c, 4 * c)
        for norm in ("norm1", "norm2", "norm3"):
            layers |= _layer(f"{block}.{norm}", c)
    return layers


def unet_names() -> Shapes:
    names = _layer("input_blocks.0.0", 320, 4, 3, 3) | _layer("out.0", 320) | _layer("out.2", 4, 320, 3, 3)
    names |= _layer("time_embed.0", 1280, 320) | _layer("time_embed.2", 1280, 1280)
    names |= _layer("label_emb.0.0", 1280, 2816) | _layer("label_emb.0.2", 1280, 1280)
    down = {
        1: (320, 320, 0),
        2: (320, 320, 0),
        4: (320, 640, 2),
        5: (640, 640, 2),
        7: (640, 1280, 10),
        8: (1280, 1280, 10),
    }
    for i, (a, b, depth) in down.items():
        names |= _resnet(f"input_blocks.{i}.0", a, b)
        names |= _transformers(f"input_blocks.{i}.1", b, depth) if depth else {}
    names |= _layer("input_blocks.3.0.op", 320, 320, 3, 3) | _layer("input_blocks.6.0.op", 640, 640, 3, 3)
    names |= _resnet("middle_block.0", 1280, 1280) | _resnet("middle_block.2", 1280, 1280)
    names |= _transformers("middle_block.1", 1280, 10)
    up = [(2560, 1280, 10), (2560, 1280, 10), (1920, 1280, 10), (1920, 640, 2), (1280, 640, 2), (960, 640, 2)]
    for i, (a, b, depth) in enumerate([*up, (960, 320, 0), (640, 320, 0), (640, 320, 0)]):
        names |= _resnet(f"output_blocks.{i}.0", a, b)
        names |= _transformers(f"output_blocks.{i}.1", b, depth) if depth else {}
    return names | _layer("output_blocks.2.2.conv", 1280, 1280, 3, 3) | _layer("output_blocks.5.2.conv", 640, 640, 3, 3)


def clip_names() -> Shapes:
    """Of the second text encoder, without `conditioner.embedders.1.model.`; its `logit_scale` generates nothing."""
    names: Shapes = {"logit_scale": (), "positional_embedding": (77, 1280), "text_projection": (1280, 1280)}
    names |= {"token_embedding.weight": (49408, 1280)} | _layer("ln_final", 1280)
    for i in range(32):
        block = f"transformer.resblocks.{i}"
        names |= {f"{block}.attn.in_proj_weight": (3840, 1280), f"{block}.attn.in_proj_bias": (3840,)}
        names |= (
            _layer(f"{block}.attn.out_proj", 1280, 1280) | _layer(f"{block}.ln_1", 1280) | _layer(f"{block}.ln_2", 1280)
        )
        names |= _layer(f"{block}.mlp.c_fc", 5120, 1280) | _layer(f"{block}.mlp.c_proj", 1280, 5120)
    return names
