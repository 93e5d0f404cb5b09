"""What the options of sampling may be, by the samplers' own annotations."""

from collections.abc import Mapping
from typing import Any, Literal

from ldm.common.annotations import optional_parameters
from ldm.diffusion.guidance import guided
from ldm.diffusion.samplers import SAMPLERS


def sampling_kinds() -> dict[str, Any]:
    """The kinds of all samplers' options, and of those of every sampling."""
    but = ("noise", "on_step", "scale", "batched")
    options = {key: kind for one in (*SAMPLERS.values(), guided) for key, kind in optional_parameters(one, but).items()}
    own = {"sampler": str, "steps": int, "guidance": float | Mapping[str, float], "spacing": str | None}
    return options | own | {"shift": float | Literal["auto"]}
