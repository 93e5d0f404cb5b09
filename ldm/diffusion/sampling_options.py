"""Which values the options of sampling can have, by the annotations of the samplers."""

from collections.abc import Mapping
from typing import Any, Literal

from ldm.common.annotations import optional_parameters
from ldm.diffusion.guidance import guided
from ldm.diffusion.samplers import SAMPLERS


def sampling_kinds() -> dict[str, Any]:
    """The annotation of every option by name: those of each sampler, of guidance, and those that all samplers share."""
    but = ("noise", "on_step", "scale", "batched")
    options = {key: kind for one in (*SAMPLERS.values(), guided) for key, kind in optional_parameters(one, but).items()}
    own = {"sampler": str, "steps": int, "guidance": float | Mapping[str, float], "spacing": str | None}
    return options | own | {"shift": float | Literal["auto"]}
