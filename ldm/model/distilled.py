"""What is particular to models that `finetune=distill` made: few steps, and guidance that may be a condition."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning import Asked
from ldm.conditioning.parts import Encode
from ldm.networks import Cond

log = logging.getLogger("ldm")


def check_few(distilled: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuses more steps than a distilled model was trained for."""
    most = distilled.get("steps")
    if most is not None and options["steps"] > most:
        raise UserError(
            f"steps={options['steps']}: this model was distilled to generate in few steps, at most {most}; 1 to 4 are "
            "usual, and more is what its base is for."
        )


def tell_negative(network: Any, distilled: Mapping[str, Any], guidance: Any, negative: Any) -> None:
    """Says that a negative prompt counts for nothing where guidance is baked in."""
    if negative is not None and distilled and (guidance == 1 or embeds_guidance(network)):
        log.warning("the negative prompt has no effect: this model was distilled with its guidance baked in")


def embeds_guidance(network: Any) -> bool:
    """Whether the guidance scale is a condition of `network`, which may have ControlNets on it."""
    return bool(getattr(getattr(network, "network", network), "guidance_dim", None))


def conditions(
    network: Any, asked: Asked, guidance: float | Mapping[str, float], encode: Encode, seeds: Sequence[int]
) -> tuple[list[Cond], list[float]]:
    """The conditions that are evaluated at each step, and their weights: one where the scale is itself a condition,
    else those of classifier-free guidance (`Asked.weighted`)."""
    if not embeds_guidance(network):
        return asked.weighted(guidance, encode, seeds)
    if isinstance(guidance, Mapping):
        raise UserError(f"guidance={dict(guidance)}: this model takes one guidance scale for all its conditions.")
    (cond,), weights = asked.weighted(1.0, encode, seeds)
    scale = asked.conditioner._place.new_full((asked.count,), float(guidance))
    return [replace(cond, guidance=scale)], weights
