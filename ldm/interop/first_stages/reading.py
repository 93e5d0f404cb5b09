"""An autoencoder of diffusers as one of ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.interop.first_stages import tiny, vq
from ldm.interop.parts import vae_config
from ldm.interop.settings import latent_scale

KINDS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
_SPECS = dict(zip(KINDS, (vae_config.from_diffusers, vq.from_diffusers, tiny.from_diffusers), strict=True))


def spec_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of ours that computes the same as the class of diffusers in `config`."""
    return _SPECS[config["_class_name"]](config)


def weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' weights under our names."""
    if config["_class_name"] == "AutoencoderTiny":
        return dict(state)
    return vae_config.weights_from_diffusers(state, config)


def whitening(config: Mapping[str, Any], where: str) -> latent_scale.Whitening:
    """Mean and std of the latents for a denoiser, by a config, or where it has none by the defaults of its class."""
    kind = config["_class_name"]
    if kind == "VQModel":
        return latent_scale.of_config({**config, "latent_channels": vq.latent_channels(config)}, where)
    usual = {"scaling_factor": 1.0} if kind == "AutoencoderTiny" else {}
    return latent_scale.of_config({**usual, **config}, where)
