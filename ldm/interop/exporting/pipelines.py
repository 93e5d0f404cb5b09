"""Which diffusers class runs an exported model, and what its index holds in addition to the parts."""

from collections.abc import Mapping
from typing import Any

from ldm.conditioning import FrozenText
from ldm.diffusion.parameterization import VariancePreserving
from ldm.interop.parts import inpainting, sdxl
from ldm.networks import Identity

_OTHER_STOCK = (["diffusers", "VQModel"], ["diffusers", "AutoencoderTiny"])


def why_own(model: Any, index: Mapping[str, Any]) -> str | None:
    """Why none of diffusers' own pipelines can run the model whose parts are in `index`; None if one can."""
    stock_parts = ("unet", ["diffusers", "UNet2DConditionModel"]), ("vae", ["diffusers", "AutoencoderKL"])
    if isinstance(model.first_stage, Identity):
        return "it generates pixels, without an autoencoder"
    if index.get("vae") in _OTHER_STOCK:
        return f"its autoencoder is a {index['vae'][1]}"
    if own := [name for name, value in stock_parts if index.get(name) != value]:
        return f"parts of its own: {', '.join(own)}"
    if sdxl.encoders_of(model.conditioner):
        reasons = sdxl.obstacles(model.conditioner)
    else:
        reasons = _of_one_encoder(inpainting.others(model.conditioner), index)
    reasons += inpainting.obstacles(model.conditioner)
    if reasons:
        return "; ".join(reasons)
    if not isinstance(model.denoiser.parameterization, VariancePreserving):
        return f"its parameterization is {type(model.denoiser.parameterization).__name__}"
    return None if model.first_stage.in_channels == 3 else f"images of {model.first_stage.in_channels} channels"


def settings(model: Any, network: Any, scheduler: str, controlled: bool) -> dict[str, Any]:
    """The diffusers class that runs a stock model, its optional parts, and its options."""
    what = ("ControlNet" if controlled else "") + ("Inpaint" if inpainting.part_of(model.conditioner) else "")
    if sdxl.encoders_of(model.conditioner):
        name = f"StableDiffusionXL{what}Pipeline"
        index: dict[str, Any] = dict.fromkeys(("feature_extractor", "image_encoder"), [None, None])
        return index | {"_class_name": name, "force_zeros_for_empty_prompt": sdxl.zeros_of(model.conditioner)}
    name = f"StableDiffusion{what}Pipeline"
    if network.guidance_dim and scheduler == "LCMScheduler" and not what:
        name = "LatentConsistencyModelPipeline"
    index = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None])
    return index | {"_class_name": name, "requires_safety_checker": False}


def _of_one_encoder(named: Mapping[str, Any], index: Mapping[str, Any]) -> list[str]:
    parts = list(named.values())
    if len(parts) != 1 or not isinstance(parts[0], FrozenText):
        return [f"its conditions are {', '.join(named) or 'none'}, not those of one frozen text encoder"]
    if parts[0].masked or parts[0].pooled or index["text_encoder"][1] != "CLIPTextModel":
        return ["its text is masked, pooled or not CLIP's"]
    return []
