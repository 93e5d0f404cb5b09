"""Small random models that every device has to generate alike with, and the calls to generate."""

from collections.abc import Callable
from typing import Any

import torch

import ldm
from ldm.conditioning import Conditioner, Inpaint, MapTokens, SemanticMap, Text
from ldm.conditioning.text import tokenizer
from ldm.diffusion import Denoiser, Flow
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, DiT, UNet

IMAGE = torch.linspace(-1, 1, 3 * 64).view(3, 8, 8)
MASK = (torch.arange(64).view(1, 8, 8) % 3 == 0).float()
MAP = torch.arange(64).view(8, 8) % 3


def text() -> Text:
    return Text(tokenizer.train(["a cat", "a dog"], 280), length=24, dim=8, depth=1, heads=2)


def captions() -> dict[str, Any]:
    return {"text": text()}


def make(
    parts: Callable[[], dict[str, Any]],
    parameterization: Any = None,
    first_stage: Any = None,
    dit: bool = False,
    side: int = 8,
) -> Any:
    """A small random model all of whose weights count."""
    torch.manual_seed(0)
    conditioner = Conditioner(parts())
    stage = first_stage or AutoencoderKL(3, 2, channels=8, multipliers=(1, 2))
    wants = {
        "context_dim": conditioner.token_dim,
        "vector_dim": conditioner.vector_dim,
        "concat_channels": conditioner.concat_channels,
    }
    if dit:
        network: Any = DiT(stage.latent_channels, channels=16, depth=2, heads=2, **wants)
    else:
        network = UNet(stage.latent_channels, channels=8, multipliers=(1,), heads=2, **wants)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    denoiser = Denoiser(network, parameterization or Flow())
    return LatentDiffusion(stage, denoiser, conditioner, Preprocess(3, side, side), {"steps": 4}).eval()


FEATURES: dict[str, dict[str, Any]] = {
    "negative": {"negative": "a dog", "guidance": 2.0},
    "interval": {"guidance": 3.0, "interval": (0.3, 5.0)},
    "rescale": {"guidance": 3.0, "rescale": 0.7},
    "image to image": {"image": IMAGE, "strength": 0.6},
    "inpainting": {"image": IMAGE, "mask": MASK, "feather": 1},
    "outpainting": {"image": IMAGE, "pad": 4},
    "size": {"size": (16, 8), "shift": "auto"},
}

CONDITIONS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "label": (lambda: {"label": ldm.ClassLabel(3, list("abc"), dim=8)}, {"labels": [0, "c"], "guidance": 2.0}),
    "map": (lambda: {"text": text(), "map": SemanticMap(3, 2, size=[8, 8])}, {"map": MAP, "guidance": {"map": 2.0}}),
    "map tokens": (lambda: {"map": MapTokens(3, size=[8, 8], grid=4, dim=8)}, {"map": MAP, "guidance": 2.0}),
    "trained to fill": (lambda: {"fill": Inpaint(2, 2, size=[8, 8])}, {"image": IMAGE, "mask": MASK}),
}
