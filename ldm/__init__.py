"""Two-stage latent diffusion on your own images.

    import ldm
    model = ldm.load("runs/ldm/emoji")
    model("a cat above a rocket on a blue background", n=4)

The names below are imported at their first use, so that a command's --help doesn't have to wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.artifact import save
    from ldm.common.errors import UserError
    from ldm.common.registry import build, register, spec_of
    from ldm.conditioning import (
        ClassLabel,
        Conditioner,
        FrozenText,
        ImageEmbedding,
        ImageSize,
        Inpaint,
        JoinedText,
        LowRes,
        MapTokens,
        SemanticMap,
        Text,
    )
    from ldm.diffusion import Denoiser
    from ldm.model.cascade import Cascade
    from ldm.model.generate import sample_prior
    from ldm.model.latent_diffusion import LatentDiffusion
    from ldm.model.loading import load
    from ldm.networks import AutoencoderKL, AutoencoderTiny, UNet, VQModel

__version__ = "0.1.0"
_HOMES = {
    "artifact": ("save",),
    "model.cascade": ("Cascade",),
    "conditioning": (
        *("ClassLabel", "Conditioner", "FrozenText", "ImageEmbedding", "ImageSize"),
        *("Inpaint", "JoinedText", "LowRes", "MapTokens", "SemanticMap", "Text"),
    ),
    "diffusion": ("Denoiser",),
    "common.errors": ("UserError",),
    "model.loading": ("load",),
    "networks": ("AutoencoderKL", "AutoencoderTiny", "UNet", "VQModel"),
    "model.generate": ("sample_prior",),
    "model.latent_diffusion": ("LatentDiffusion",),
    "common.registry": ("build", "register", "spec_of"),
}
# Importing these registers the classes that `build` knows by name, as YAML does.
_REGISTERED = ("data.sources", "networks", "conditioning", "diffusion")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "Cascade",
    "ClassLabel",
    "Conditioner",
    "Denoiser",
    "FrozenText",
    "ImageEmbedding",
    "ImageSize",
    "Inpaint",
    "JoinedText",
    "LatentDiffusion",
    "LowRes",
    "MapTokens",
    "SemanticMap",
    "Text",
    "UNet",
    "UserError",
    "VQModel",
    "build",
    "load",
    "register",
    "sample_prior",
    "save",
    "spec_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ldm' has no attribute '{name}'")
    if name == "build":
        for package in _REGISTERED:
            importlib.import_module(f"ldm.{package}")
    return getattr(importlib.import_module(f"ldm.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
