"""Stable Diffusion XL's conditions: the joined penultimate layers of two text encoders, the projected pooled state of
the second one, and the image's sizes."""

from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, FrozenText, ImageSize, JoinedText
from ldm.interop.parts import inpainting
from ldm.networks import UNet

LAYER = {"clip_skip": 2, "final_norm": False}  # how both encoders are read
POOL = {"pooled": True, "projected": True}  # of the second one in addition
READINGS: tuple[dict[str, Any], ...] = (LAYER, LAYER | POOL)
FACTOR = 0.13025  # that latents are multiplied by
GUIDANCE = 5.0
INPAINTING_GUIDANCE = 7.5


def conditioner(encoders: list[FrozenText], zeros: bool, features: int, size: tuple[int, int]) -> Conditioner:
    """The conditioner of two encoders, read as in `READINGS`.

    `size` is the size of the images; `zeros`: the absence of a prompt is represented by zeros.
    """
    return Conditioner({"text": JoinedText(encoders, zeros), "size": ImageSize(features, list(size))})


def check_fit(network: Any, found: Conditioner, where: str) -> None:
    """Refuses a U-Net that reads other widths than its conditions have."""
    wanted = {"tokens": network.context_dim, "a vector": network.vector_dim}
    given = {"tokens": found.token_dim, "a vector": found.vector_dim}
    if odd := [what for what in wanted if wanted[what] != given[what]]:
        shown = ", ".join(f"{what} of {given[what]} numbers, but the U-Net reads {wanted[what]}" for what in odd)
        raise UserError(f"{where}: the parts don't fit: text encoders and sizes give {shown}.")


def encoders_of(found: Conditioner) -> list[FrozenText]:
    """The two text encoders of Stable Diffusion XL's conditions; empty for other conditions."""
    parts = list(inpainting.others(found).values())
    text, size = (parts + [None, None])[:2]
    is_xl = len(parts) == 2 and isinstance(text, JoinedText) and isinstance(size, ImageSize)
    return list(text.encoders) if is_xl and isinstance(text, JoinedText) else []


def obstacles(found: Conditioner) -> list[str]:
    """Why conditions of two text encoders and sizes aren't Stable Diffusion XL's; empty if they are."""
    encoders = encoders_of(found)
    if len(encoders) != 2:
        return [f"its conditions are {', '.join(found.parts) or 'nothing'}, not two text encoders and sizes"]
    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    reasons = []
    for part, wanted, cls, which in zip(encoders, READINGS, classes, ("first", "second"), strict=True):
        own = {key: getattr(part, key) for key in (*LAYER, *POOL)}
        if own != {"pooled": False, "projected": False} | wanted:
            reasons.append(f"its {which} text encoder isn't read as in Stable Diffusion XL ({_settings(wanted)})")
        if type(part.encoder).__name__ != cls:
            reasons.append(f"its {which} text encoder is a {type(part.encoder).__name__}, not a {cls}")
    return reasons


def features_of(found: Conditioner) -> int | None:
    """The number of features of each size."""
    return next((part.features for part in found.parts.values() if isinstance(part, ImageSize)), None)


def zeros_of(found: Conditioner) -> bool:
    """Whether the absence of a prompt is represented by zeros."""
    return any(part.nothing != "" for part in found.parts.values())


def guidance_of(network: Any) -> float:
    """The default guidance scale of diffusers' pipelines for Stable Diffusion XL with this U-Net."""
    return INPAINTING_GUIDANCE if network.concat_channels else GUIDANCE


def is_xl_unet(network: Any) -> bool:
    """Whether a U-Net has two layers for its vector."""
    return isinstance(network, UNet) and network.add_embedding is not None


def _settings(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in wanted.items())
