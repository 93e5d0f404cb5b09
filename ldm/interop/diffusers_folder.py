"""A diffusers folder as a model of ours: a whole pipeline, or one of its parts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import artifact
from ldm.common.errors import UserError
from ldm.common.registry import build, lookup
from ldm.conditioning import Conditioner
from ldm.diffusion import Denoiser
from ldm.diffusion.parameterization import Parameterization
from ldm.images import Preprocess
from ldm.interop import schedulers
from ldm.interop.files import config_checks, shards
from ldm.interop.files.declared import NOT_SETTINGS, of_metadata, refuse_quantised
from ldm.interop.files.name_tables import refuse, report
from ldm.interop.files.unread_in_pipeline import warn_of_unread
from ldm.interop.files.values import read_json, whole
from ldm.interop.first_stages import reading
from ldm.interop.parts import conditions, controlnet_config, inpainting, sdxl, unet_config
from ldm.interop.settings import latent_scale

log = logging.getLogger("ldm")
WEIGHTS = "diffusion_pytorch_model"
_INDEX = ("requires_safety_checker", "force_zeros_for_empty_prompt", "text", "sampling", "t_max")  # of model_index.json
_KNOWN = {
    "vae", "unet", "scheduler", "text_encoder", "tokenizer", "conditioner", "controlnet", "safety_checker",
    "feature_extractor", "text_encoder_2", "tokenizer_2",
}  # fmt: skip
_OWN = ("LdmVAE", "LdmUNet", "LdmConditioner")  # classes that our export writes beside the weights
_PARTS = (*reading.KINDS, "UNet2DConditionModel", "ControlNetModel", *_OWN)


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline or one of its models."""
    if (folder / "model_index.json").is_file():
        return True
    config = folder / "config.json"
    return config.is_file() and "_class_name" in read_json(config)  # a model folder's has none


def controlnet_in(folder: Path) -> Path | None:
    """The folder of the ControlNet in a pipeline's folder. Raises UserError if its index names one that isn't there."""
    if (folder / "controlnet" / "config.json").is_file():
        return folder / "controlnet"
    index = folder / "model_index.json"
    named = read_json(index).get("controlnet") if index.is_file() else None
    if isinstance(named, list) and all(isinstance(word, str) for word in named):
        raise UserError(f"{folder} isn't whole: {index.name} names controlnet, which isn't there; download it again.")
    return None


def load_folder(folder: str | Path) -> nn.Module:
    """The model in a diffusers folder, in eval mode: a LatentDiffusion, an autoencoder, a UNet or a ControlNet.

    A pipeline's ControlNet isn't loaded with it: see `controlnet_in`. Raises UserError naming what can't be
    represented.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    return load_part(folder)


def load_part(folder: Path) -> nn.Module:
    """The autoencoder, U-Net or conditioner in the folder of one part."""
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in _PARTS:
        raise UserError(f"{folder} holds a {name}, which has no counterpart here; known: {', '.join(_PARTS)}.")
    if name not in _OWN:
        config_checks.check_part(config, str(folder / "config.json"))
    try:
        return _part(folder, name, config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} isn't a whole config of {name} ({error}).") from None


def _part(folder: Path, name: str, config: Mapping[str, Any]) -> nn.Module:
    state = read_weights(folder)
    if name in _OWN:
        return _restore(config["spec"], _of_network(state, folder), folder)
    if name == "ControlNetModel":
        net = _restore(controlnet_config.from_diffusers(config), controlnet_config.weights(state, config), folder)
        return _with_features(net, config)
    if name in reading.KINDS:
        model = _restore(reading.spec_of_config(config), reading.weights(state, config), folder)
        model.scaling = reading.whitening(config, str(folder / "config.json"))  # type: ignore[assignment]
        return model
    model = _restore(unet_config.from_diffusers(config), unet_config.weights(state, config), folder)
    return _with_features(model, config)


def _of_network(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights of the `network` inside a class that our export wrote, which has no other weights."""
    if others := [name for name in state if not name.startswith("network.")]:
        raise UserError(f"{folder}: the weights don't fit: {report([], others)}.")
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


def read_weights(folder: Path, stem: str = WEIGHTS) -> dict[str, Tensor]:
    """The weights in a part's folder in float32: from one file or several, as safetensors, or pickled if they hold
    nothing but weights.
    """
    files = shards.weight_files(folder, stem)
    if not files:
        raise UserError(f"{folder} holds no weights: {stem}.safetensors is missing.")
    if any(shards.NON_EMA in file.name for file in files):
        log.warning("%s holds only %s: the weights without averaging are used", folder, files[0].name)
    weights: dict[str, Tensor] = {}
    for file in files:
        tensors = read_tensors(file)
        if twice := weights.keys() & tensors.keys():
            raise UserError(f"{folder}: {min(twice)} is in {file.name} and in another file: download the folder again.")
        weights |= {name: as_float32(tensor) for name, tensor in tensors.items()}
    return weights


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickled one that holds nothing but tensors and plain data."""
    return read_all(file)[0]


def read_all(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and what it declares: metadata, a trainer's settings, numbers."""
    try:
        if file.suffix.lower() == ".safetensors":
            return _read_safetensors(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        named = {str(name): value for name, value in state.items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file} can't be read without running its code, or is damaged ({type(error).__name__})."
        ) from None
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    declared = {name: value for name, value in content.items() if name not in NOT_SETTINGS}
    return tensors, {str(name): value for name, value in {**declared, **named}.items() if name not in tensors}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata.

    Each tensor is copied from a mapping of its own, in the memory layout that models have here. A mapping of the whole
    file would take memory in addition to the copies until its last tensor is released.
    """
    from safetensors import safe_open

    def read(name: str) -> Tensor:
        """One tensor in memory of its own; convolution weights are channels-last."""
        with safe_open(file, "pt") as mapped:
            tensor = mapped.get_tensor(name)
            return tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.preserve_format)

    with safe_open(file, "pt") as opened:
        names, metadata = list(opened.keys()), opened.metadata() or {}
    refuse_quantised(metadata, str(file))
    return {name: read(name) for name in names}, of_metadata(metadata, str(file))


def as_float32(tensor: Tensor) -> Tensor:
    """A floating-point tensor in float32; others unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor


def assemble(
    first_stage: nn.Module,
    network: nn.Module,
    parameterization: Parameterization,
    conditioner: Conditioner,
    whitening: tuple[list[float], list[float]],
    sampling: Mapping[str, Any],
    size: tuple[int, int],
    replaced: str | None = None,
    **about: Any,
) -> nn.Module:
    """The parts as one LatentDiffusion.

    `size` is the images' height and width, `replaced` the scheduler that the nearest sampler replaces, `about` further
    arguments of the model.
    """
    latent, wanted = first_stage.latent_channels, network.in_channels
    if latent != wanted:
        raise UserError(f"the parts don't fit: the autoencoder has {latent} latent channels, the U-Net {wanted}.")
    preprocess = Preprocess(first_stage.in_channels, *size)  # type: ignore[arg-type]
    about |= {"scheduler": replaced} if replaced else {}
    parts = (first_stage, Denoiser(network, parameterization), conditioner, preprocess)
    model = lookup("LatentDiffusion")(*parts, sampling, **about)
    model.latent_mean.copy_(torch.tensor(whitening[0]))
    model.latent_std.copy_(torch.tensor(whitening[1]))
    return model.eval().requires_grad_(False)


def _with_features(network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A U-Net or ControlNet that knows the number of features per size from its config, as its weights don't show
    it."""
    two = network.add_embedding is not None
    network.size_features = config.get("addition_time_embed_dim") if two else None  # type: ignore[assignment]
    return network


def _restore(spec: Mapping[str, Any], state: Mapping[str, Tensor], where: Path) -> nn.Module:
    return artifact.restore({"format": artifact.FORMAT, "model": spec}, state, str(where))


def _pipeline(folder: Path) -> nn.Module:
    where = folder / "model_index.json"
    index = read_json(where)
    config_checks.check_index(index, _KNOWN, str(where))
    # A part is [library, class], a pipeline class of its own [module, class] under _class_name; options are neither.
    parts = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
    present = {name for name, value in parts.items() if len(value) == 2 and isinstance(value[0], str)}
    if extra := sorted(present - _KNOWN):
        raise UserError(f"{folder} has parts with no counterpart here: {', '.join(extra)}.")
    warn_of_unread(folder, present)
    options = {name: value for name, value in index.items() if name not in parts}
    refuse(options, _INDEX, {}, f"{where}: the pipeline")
    if missing := [name for name in ("unet", "scheduler") if name not in present]:
        raise UserError(f"{folder} isn't a whole pipeline: {', '.join(missing)} is missing.")
    for part in [part for part in ("unet", "vae", "scheduler", "text_encoder") if part in present]:
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        config_checks.check_class(index, part, read_json(file), str(file))
    network: Any = load_part(folder / "unet")
    if not hasattr(network, "in_channels"):
        raise UserError(f"{folder / 'unet'} holds a {type(network).__name__}, not a U-Net.")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    config = read_json(scheduler)
    parameterization, sampling = schedulers.from_diffusers(config, str(scheduler))
    first_stage, whitening = _first_stage(folder, present, network)
    height, width = (int(side * first_stage.factor) for side in _sides(folder))  # type: ignore[operator]
    if "conditioner" in present:
        conditioner: Any = load_part(folder / "conditioner")
    else:
        conditioner = conditions.of_pipeline(folder, present, index, network=network, size=(height, width))
    conditioner = inpainting.with_mask(conditioner, network, first_stage, size=(height, width), where=str(folder))
    declared = dict(index.get("sampling") or {})
    stable = "text_encoder" in present and "conditioner" not in present
    own, is_distilled = _defaults(sampling["sampler"], network, stable)
    sampling |= own | declared
    replaced = None if "sampler" in declared else schedulers.substituted_solver(config, sampling, str(scheduler))
    about = {"distilled": {"steps": most_steps(config, str(scheduler))}} if is_distilled else {}
    size = (height, width)
    return assemble(
        first_stage,
        network,
        parameterization,
        conditioner=conditioner,
        whitening=whitening,
        sampling=sampling,
        size=size,
        replaced=replaced,
        **about,
    )


def _defaults(sampler: str, network: Any, is_stable_diffusion: bool) -> tuple[dict[str, Any], bool]:
    """The sampling defaults of the pipeline's class, and whether the model is distilled."""
    if sampler == "lcm":  # guidance is a condition, as in LatentConsistencyModelPipeline, or distilled into the weights
        return {"guidance": 8.5} if getattr(network, "guidance_dim", None) else {}, True
    guidance = sdxl.guidance_of(network) if sdxl.is_xl_unet(network) else 7.5
    return {"guidance": guidance} if is_stable_diffusion else {}, False


def most_steps(config: Mapping[str, Any], where: str) -> int:
    """The most steps that a latent consistency model takes, by its scheduler's config."""
    return whole(config.get("original_inference_steps", 50), f"{where}: original_inference_steps")


def _sides(folder: Path) -> tuple[int, int]:
    """The height and width of the latents that a pipeline generates."""
    file = folder / "unet" / "config.json"
    return config_checks.sizes(read_json(file).get("sample_size"), 64, f"{file}: sample_size")


def _first_stage(folder: Path, present: set[str], network: Any) -> tuple[nn.Module, tuple[list[float], list[float]]]:
    """The autoencoder and its whitening; the identity where there is no autoencoder."""
    if "vae" not in present:
        z = network.in_channels
        return build({"class": "Identity", "in_channels": z}), ([0.0] * z, [1.0] * z)
    config = read_json(folder / "vae" / "config.json")
    first_stage: Any = load_part(folder / "vae")
    if not hasattr(first_stage, "factor"):
        raise UserError(f"{folder / 'vae'} holds a {type(first_stage).__name__}, not an autoencoder.")
    where = str(folder / "vae" / "config.json")
    if config["_class_name"] in _OWN:
        mean, std = (
            latent_scale.per_channel(config.get(name), first_stage.latent_channels, f"{where}: {name}")
            for name in ("latent_mean", "latent_std")
        )
        return first_stage, (mean, latent_scale.positive(std, f"{where}: latent_std"))
    return first_stage, reading.whitening(config, where)
