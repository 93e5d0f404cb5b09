"""Networks of ours and of diffusers with random weights, built from configs on the device: nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ldm.common.registry import build
from ldm.interop.parts import unet_config, vae_config
from ldm.networks import DiT

CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A network that both projects have. `side` is its input's, and batches are those of training and generating."""

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    side: int
    batches: tuple[int, int]
    equal: bool  # whether theirs' weights fit ours, and give the same
    kind: str
    tokens: tuple[int, int] = (0, 0)  # how many, and how wide: of the context
    note: str = ""
    steps: int = 20  # of generating


def unet_case(name: str, config: dict[str, Any], batches: tuple[int, int], tokens: int) -> Case:
    def theirs() -> nn.Module:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(**config)

    context = (tokens, config["cross_attention_dim"])
    spec = unet_config.from_diffusers(config)
    return Case(name, lambda: build(spec), theirs, config["sample_size"], batches, True, "unet", context)


def vae_case(name: str, config: dict[str, Any], batches: tuple[int, int]) -> Case:
    def theirs() -> nn.Module:
        from diffusers import AutoencoderKL

        return AutoencoderKL(**config)

    spec = vae_config.from_diffusers(config)
    return Case(name, lambda: build(spec), theirs, config["sample_size"], batches, True, "vae")


def dit_case(name: str, width: int, depth: int, heads: int, side: int, batches: tuple[int, int]) -> Case:
    def theirs() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=4,
            out_channels=8,
            num_layers=depth,
            sample_size=side,
            num_embeds_ada_norm=CLASSES,
        )

    def ours() -> nn.Module:
        return DiT(4, 8, channels=width, depth=depth, heads=heads, patch=2, vector_dim=width)

    note = (
        "diffusers has no equal network: of DiTTransformer2DModel's blocks each embeds noise level and class anew, "
        "where ours embed them once; widths, depth, heads and patches are the same"
    )
    return Case(name, ours, theirs, side, batches, False, "dit", (0, width), note)


LEVELS = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
LEVELS |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
SD15 = {  # unet/config.json of Stable Diffusion 1.5
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    **LEVELS,
}
KL_F8 = {  # conf/vae/kl_f8.yaml, which is the autoencoder of Stable Diffusion
    "sample_size": 256,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TINY_UNET = SD15 | {"sample_size": 8, "block_out_channels": (32,) * 4, "layers_per_block": 1, "cross_attention_dim": 16}
TINY_VAE = KL_F8 | {"sample_size": 16, "block_out_channels": (32,) * 4, "layers_per_block": 1}


def cases(tiny: bool) -> list[Case]:
    if tiny:
        made = [
            unet_case("U-Net of Stable Diffusion's kind, tiny", TINY_UNET, (2, 1), 5),
            vae_case("autoencoder, tiny", TINY_VAE, (2, 2)),
            dit_case("DiT, tiny", 32, 2, 2, 8, (2, 1)),
        ]
        return [replace(case, steps=2) for case in made]
    return [
        unet_case("U-Net of Stable Diffusion 1.5, 64x64 latents", SD15, (16, 4), 77),
        vae_case("kl_f8, 256x256", KL_F8, (16, 16)),
        dit_case("DiT-XL/2, 32x32 latents", 1152, 28, 16, 32, (32, 8)),
    ]
