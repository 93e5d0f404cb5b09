"""An autoencoder of ours as one of diffusers, or where it has none like it, with a class of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.interop.exporting.export_report import Report
from ldm.interop.exporting.part_files import write_own, write_part
from ldm.interop.first_stages import tiny, vq
from ldm.interop.parts import vae_config
from ldm.interop.settings.latent_scale import SD_FACTOR
from ldm.networks import Autoencoder, AutoencoderKL, AutoencoderTiny, VQModel


def write_first_stage(
    model: Autoencoder,
    whitening: tuple[Tensor, Tensor],
    out: Path,
    report: Report,
    sample_size: int,
    declared: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes the part, and returns its library and class.

    `whitening` has the latents' mean and std. `declared` are the settings for latents in the config of an autoencoder
    that is exported by itself.
    """
    mean, std = whitening
    reasons = obstacles(model, mean, std)
    if reasons:
        report.parts["vae"] = "; ".join(reasons)
        own = {"latent_mean": mean.tolist(), "latent_std": std.tolist(), "scaling_factor": 1.0}
        return write_own("ldm_vae", "LdmVAE", model, out=out, config=own)
    report.parts["vae"] = "stock"
    factor, state = vae_config.stock_factor(mean, std), dict(model.state_dict())
    if factor is None:  # with the factor that all tools assume for Stable Diffusion where a file has none
        factor, state = SD_FACTOR, vae_config.fold(state, mean, std * SD_FACTOR)
    config = _config(model, sample_size, factor, folded="quant_conv.weight" in state)
    write_part(out, config | dict(declared or {}), state)
    return ["diffusers", config["_class_name"]]


def obstacles(model: Autoencoder, mean: Tensor, std: Tensor) -> list[str]:
    """Why none of diffusers' classes is like `model` with latents of that mean and std; empty if one is."""
    if isinstance(model, AutoencoderKL):
        return vae_config.obstacles(model)
    reasons = vq.obstacles(model) if isinstance(model, VQModel) else []
    if not isinstance(model, (VQModel, AutoencoderTiny)):
        reasons.append(f"a {type(model).__name__}")
    if vae_config.stock_factor(mean, std) is None:  # into a codebook, or a tanh, it can't be folded
        reasons.append("latents whitened by channel")
    return reasons


def _config(model: Autoencoder, sample_size: int, factor: float, folded: bool) -> dict[str, Any]:
    if isinstance(model, VQModel):
        return vq.to_diffusers(model, sample_size, factor)
    if isinstance(model, AutoencoderTiny):
        return tiny.to_diffusers(model, factor)
    assert isinstance(model, AutoencoderKL)
    return vae_config.to_diffusers(model, sample_size, factor, folded)
