"""The special properties of models made by `finetune=distill`: few steps, and a guidance scale that may be a
condition.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ldm.common.errors import UserError
from ldm.conditioning import Conditions
from ldm.conditioning.part import EncodeFn
from ldm.diffusion import Terms

log = logging.getLogger("ldm")


def check_few(distilled: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises UserError for more steps than a distilled model was trained for."""
    most = distilled.get("steps")
    if most is not None and options["steps"] > most:
        raise UserError(
            f"steps={options['steps']}: this model was distilled to generate in at most {most} steps; give 1 to 4, or "
            "use its base for more."
        )


def warn_of_negative(network: Any, distilled: Mapping[str, Any], guidance: Any) -> None:
    """Warns that a negative prompt, or negative sizes, have no effect where guidance is baked in or off."""
    if distilled and (guidance == 1 or embeds_guidance(network)):
        log.warning("the negative prompt has no effect: this model was distilled with its guidance baked in")
    elif guidance == 1:
        log.warning("negative prompts and conditions have no effect at guidance 1: give guidance=3, for example")


def embeds_guidance(network: Any) -> bool:
    """Whether the guidance scale is a condition of `network`, or of the network below ControlNets."""
    return bool(getattr(getattr(network, "network", network), "guidance_dim", None))


def terms_of(
    network: Any, conditions: Conditions, guidance: float | Mapping[str, float], encode: EncodeFn, seeds: Sequence[int]
) -> Terms:
    """The terms to evaluate at each step: a single one if the guidance scale is a condition of the network, otherwise
    those of classifier-free guidance (`Conditions.terms`)."""
    if not embeds_guidance(network):
        return conditions.terms(guidance, encode, seeds)
    if isinstance(guidance, Mapping):
        raise UserError(f"guidance={dict(guidance)}: this model takes one guidance scale for all its conditions.")
    scale = torch.full((conditions.count,), float(guidance), device=conditions.conditioner.device)
    return conditions.terms(1.0, encode, seeds).map(lambda cond: replace(cond, guidance=scale))
