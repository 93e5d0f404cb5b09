"""The inpainting models of Stable Diffusion: U-Nets that read a mask and the latents of the masked image beside their
own (9 channels with latents of 4)."""

from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, Inpaint
from ldm.conditioning.inpaint import STABLE

NAME = "inpaint"
_CHANNELS = 4  # of the latents that diffusers' pipelines of this kind take


def with_mask(found: Conditioner, network: Any, first_stage: Any, size: tuple[int, int], where: str) -> Conditioner:
    """The conditions `found` with the mask and masked image that a U-Net reads, if it does. `size` is the images'.

    Raises UserError for a U-Net that reads other channels beside the latents.
    """
    more, z = network.concat_channels, network.in_channels
    if more == found.concat_channels:
        return found
    if more != 1 + z:
        raise UserError(
            f"{where} can't be represented here: its U-Net reads {z + more} channels, {more} in addition to the "
            f"latents. Inpainting would add {1 + z}, for a mask and a masked image; an image to edit "
            "(InstructPix2Pix), depth or a low resolution have no counterpart here."
        )
    sides: dict[str, Any] = {"factor": first_stage.factor, "size": list(size), "channels": first_stage.in_channels}
    part = Inpaint(z, drop_prob=0.0, layout=STABLE, **sides)
    return Conditioner({**found.parts, NAME: part})


def part_of(found: Conditioner) -> Inpaint | None:
    """The condition that is a mask and a masked image."""
    return next((part for part in found.parts.values() if isinstance(part, Inpaint)), None)


def others(found: Conditioner) -> dict[str, Any]:
    """The other conditions by name."""
    return {name: part for name, part in found.parts.items() if not isinstance(part, Inpaint)}


def obstacles(found: Conditioner) -> list[str]:
    """Why mask and masked image differ from those of Stable Diffusion's inpainting models; empty if they don't."""
    part = part_of(found)
    if part is None:
        return []
    reasons = []
    if part.layout != STABLE:
        reasons.append(f"its mask is given as shares of hidden pixels (conditioner.{NAME}.layout={STABLE})")
    if part.latent_channels != _CHANNELS:
        reasons.append(f"its latents have {part.latent_channels} channels, those of inpainting models {_CHANNELS}")
    return reasons
