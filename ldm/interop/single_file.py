"""A single-file CompVis checkpoint (LDM, Stable Diffusion 1, 2 and XL) as a model of ours."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import artifact
from ldm.common.annotations import check_arguments
from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.conditioning import Conditioner
from ldm.interop import trainer_settings
from ldm.interop.diffusers_folder import as_float32, assemble, read_all
from ldm.interop.files import beside_checkpoint, user_metadata
from ldm.interop.files.name_tables import by_prefix, inverse, rename
from ldm.interop.parts import compvis, compvis_shapes, controlnet_config, inpainting, sdxl, sdxl_file
from ldm.interop.parts.clip_text import load_clip
from ldm.interop.recognition import is_bare_vae
from ldm.interop.settings import (
    head_counts,
    latent_scale,
    model_version,
    noise_table,
    parameterizations,
    prediction,
    sampler_settings,
)
from ldm.networks import Autoencoder, AutoencoderKL, UNet
from ldm.networks.first_stages.base import check_size

log = logging.getLogger("ldm")
_IGNORED = (
    "model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "loss.", "logvar", "lvlb_weights",
)  # fmt: skip
# in the name of another tensor: it would change what the model generates; a `difference` is of weights from a base's
_SIGNIFICANT = ("scal", "shift", "mean", "std", "sigma", "latent", "edm", "snr", "pred", "difference")


@check_arguments
def load_single_file(
    path: str | Path,
    *,
    text_encoder: str | Path | None = None,
    heads: int | None = None,
    head_dim: int | None = None,
    prediction: str | None = None,
    scaling_factor: float | None = None,
    ema: bool = False,
    size: int | None = None,
) -> nn.Module:
    """The LatentDiffusion in a single-file checkpoint, or its autoencoder, UNet or ControlNet if it holds only that.

    Arguments give what the file doesn't declare: `heads` or `head_dim` (by default from the trainer's settings, else 8
    heads, or 64 channels per head with linear projections); `prediction` ("eps", "v" or "flow"; by default as declared,
    else v for a context of 1024, which is Stable Diffusion 2, except for inpainting); the latents' `scaling_factor` (by
    default as declared, else 0.18215, for XL 0.13025); the images' `size` (by default as declared, else 512, 768 for v
    of Stable Diffusion 2, 1024 for XL). A part alone takes only those that concern it.

    `ema` loads the averaged weights. `text_encoder` is a folder with the tokenizer, which no such file contains; the
    encoder's weights are the file's if it has them, else the folder's. Without it the model takes no prompt.
    """
    path = Path(path)
    given: dict[str, Any] = {
        "text_encoder": text_encoder,
        "heads": heads,
        "head_dim": head_dim,
        "prediction": prediction,
    }
    given |= {"scaling_factor": scaling_factor, "ema": ema or None, "size": size}
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("heads", "head_dim", "size"):
        if given.get(key, 1) < 1:
            raise UserError(f"{key}={given[key]}: give a whole number above 0.")
    try:
        return _load(path, given)
    except KeyError as error:
        raise UserError(f"{path} isn't a whole checkpoint: {error.args[0]} is missing.") from None
    except IndexError:
        raise UserError(f"{path} can't be represented here: one of its weights has too few axes.") from None


def _load(path: Path, given: Mapping[str, Any]) -> nn.Module:
    tensors, declared = read_all(path)
    user_metadata.warn(path)
    declared = {**declared, **beside_checkpoint.settings_beside(path)}
    latents = latent_scale.collect(tensors, declared, str(path))
    names = list(tensors)
    sdxl_file.refuse_refiner(names, str(path))
    if any(name.startswith(controlnet_config.COMPVIS) for name in names):
        _check_alone("a ControlNet", ("heads", "head_dim"), given, latents=latents, tensors=tensors, path=path)
        _check_rest(tensors, path)
        sizes = head_counts.of_file(declared, given, head_counts.CONTROLNET, str(path))
        return controlnet_config.from_compvis(_floats(tensors), str(path), **sizes)
    if is_bare_vae(tensors):
        _check_alone("an autoencoder", (), given, latents=latents, tensors=tensors, path=path)
        return load_vae(_floats(tensors), str(path))
    beside_checkpoint.warn_of_vae(path)
    whole = any(name.startswith(compvis.VAE) for name in names)
    if not whole:
        if any(name.startswith((compvis.TEXT, sdxl_file.TEXT)) for name in names):
            log.warning("%s has a U-Net and a text encoder, but no autoencoder (first_stage_model.): it isn't a whole "
                        "model, and the U-Net alone is read", path)  # fmt: skip
        _check_alone(
            "a U-Net",
            ("heads", "head_dim", "ema"),
            given,
            latents=latents,
            tensors=tensors,
            path=path,
            noise=_of_noise(declared, str(path)),
        )
        _check_rest(tensors, path)
    state = _floats(tensors)
    has_averages = any(name.startswith("model_ema.") for name in names)
    trainer_settings.warn_of_averages(declared, has_averages, given.get("ema", False), str(path))
    if given.get("ema"):
        state |= _averaged(state)
    sizes = head_counts.of_file(declared, given, head_counts.UNET, str(path))
    network = load_unet(_under(state, compvis.UNET), str(path), **sizes)
    model_version.warn(declared, network.context_dim, str(path))
    trainer_settings.check_conditions(declared, network, str(path))
    return (
        _whole(path, network, state, tensors=tensors, declared=declared, latents=latents, given=given)
        if whole
        else network
    )


def _whole(
    path: Path,
    network: UNet,
    state: Mapping[str, Tensor],
    tensors: dict[str, Tensor],
    declared: Mapping[str, Any],
    latents: Mapping[str, Any],
    given: Mapping[str, Any],
) -> nn.Module:
    """The LatentDiffusion around a U-Net; `tensors` are the file's, in their own precision."""
    first_stage = load_vae(_under(state, compvis.VAE), str(path))
    is_xl = sdxl_file.is_xl(state)
    if sdxl.is_xl_unet(network) and not is_xl:
        raise UserError(f"{path} can't be represented here: its U-Net's label_emb is a network, as in unCLIP.")
    z, factor = first_stage.latent_channels, sdxl.FACTOR if is_xl else latent_scale.SD_FACTOR
    factor = 1.0 if first_stage.REGULARIZER == "codebook" else factor  # LDM's own, without scale_factor
    whitening = latent_scale.of_checkpoint(latents, given.get("scaling_factor"), z, where=str(path), usual=factor)
    two = network.context_dim == 1024
    usual_kind = "v" if two and not network.concat_channels else "eps"  # Stable Diffusion 2's inpainting model is eps
    kind = prediction.of_file(tensors, declared, given.get("prediction"), path) or usual_kind
    parameterization, sampling = parameterizations.of_file(kind, tensors, declared, str(path))
    _check_rest(tensors, path)
    usual = sdxl_file.SIZE if is_xl else 768 if two and kind == "v" else 512
    declared_size = None if "size" in given else trainer_settings.size(declared, first_stage.factor, str(path))
    height, width = (given["size"],) * 2 if "size" in given else declared_size or (usual, usual)
    check_size(height, width, first_stage.factor)
    folder = given.get("text_encoder")
    if is_xl and folder is not None:
        two_encoders = _under(state, sdxl_file.TEXT)
        conditioner = sdxl_file.conditioner(
            two_encoders, Path(folder), path, declared=declared, network=network, size=(height, width)
        )
    else:
        conditioner = _conditioner(_under(state, sdxl_file.TEXT if is_xl else compvis.TEXT), folder, path, declared)
    guidance = sdxl.guidance_of(network) if is_xl else 7.5
    sampling |= {"guidance": guidance} | sampler_settings.of_file(declared, str(path))
    sampling |= {} if conditioner.parts else {"guidance": 1.0}
    conditioner = inpainting.with_mask(conditioner, network, first_stage, size=(height, width), where=str(path))
    return assemble(
        first_stage,
        network,
        parameterization,
        conditioner=conditioner,
        whitening=whitening,
        sampling=sampling,
        size=(height, width),
    )


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: as_float32(tensor) for name, tensor in tensors.items()}


def _check_alone(
    what: str,
    takes: tuple[str, ...],
    given: Mapping[str, Any],
    latents: Mapping[str, Any],
    tensors: dict[str, Tensor],
    path: Path,
    noise: Iterable[str] = (),
) -> None:
    """Refuses options that don't concern a part alone, and warns of the file's settings for latents and `noise`."""
    if idle := [key for key in given if key not in takes]:
        raise UserError(f"{path} holds only {what}, which takes no {', '.join(idle)}: leave it out.")
    markers = [name for name in ("v_pred", "ztsnr") if tensors.pop(name, None) is not None]
    if declared := [*latents, *markers, *noise]:
        log.warning(
            "%s holds only %s: its settings for latents and noise aren't used: %s", path, what, ", ".join(declared)
        )


def _of_noise(declared: Mapping[str, Any], where: str) -> list[str]:
    """Settings of prediction, noise levels and image size, for which a network alone has no place."""
    claims = [f"{key}={text[-40:]}" for key, text, _ in prediction.of_settings(declared, where)]
    return [*claims, *noise_table.unread(declared), *trainer_settings.sizes_of(declared, where)]


def load_unet(state: Mapping[str, Tensor], where: str, heads: int | None = None, head_dim: int | None = None) -> UNet:
    """Our UNet with CompVis's weights (prefix removed)."""
    spec, attends = compvis_shapes.unet_spec(state, heads, head_dim)
    with torch.device("meta"):
        wanted = build(spec).state_dict()
    modules = compvis.unet_modules(attends, spec["blocks"])
    ours = rename(state, inverse(compvis.unet_table(wanted, modules)), where)
    if (table := ours.get("class_embedding.weight")) is not None:
        ours["class_embedding.weight"] = table.T.contiguous()  # an embedding (N, E) as a linear map (E, N)
    return _restore(spec, ours, wanted, where)


def load_vae(state: Mapping[str, Tensor], where: str) -> Autoencoder:
    """Our AutoencoderKL or VQModel with CompVis's weights (prefix removed)."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_IGNORED)}
    spec = compvis_shapes.vae_spec(state)
    with torch.device("meta"):
        wanted = build(spec).state_dict()
    return _restore(spec, rename(state, inverse(_vae_table(wanted, spec)), where), wanted, where)


def _vae_table(names: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, str]:
    """{ours: CompVis's} for every weight of an autoencoder."""
    return by_prefix(names, compvis.vae_modules(len(spec["channels"]), spec["blocks"]), compvis.VAE_PARTS)


def to_compvis(model: UNet | AutoencoderKL) -> dict[str, Tensor]:
    """A U-Net's or autoencoder's weights under CompVis's names, without a prefix: the inverse of the import."""
    state = dict(model.state_dict())
    if isinstance(model, UNet):
        if "class_embedding.weight" in state:
            state["class_embedding.weight"] = state["class_embedding.weight"].T.contiguous()
        attends = [level.attentions is not None for level in model.down_blocks]
        modules = compvis.unet_modules(attends, len(model.down_blocks[0].resnets))
        return rename(state, compvis.unet_table(state, modules), "the U-Net")
    stages = model.encoder.down_blocks
    spec = {"channels": list(stages), "blocks": len(stages[0].resnets)}  # type: ignore[arg-type]
    named = rename(state, _vae_table(state, spec), "the autoencoder")
    linear = {n for n, t in named.items() if ".attn_1." in n and t.ndim == 2}
    return {n: t[..., None, None] if n in linear else t for n, t in named.items()}


def _restore(spec: Mapping[str, Any], ours: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> Any:
    shaped = compvis.in_shapes_of(ours, wanted)
    return artifact.restore({"format": artifact.FORMAT, "model": spec}, shaped, where)


def _conditioner(
    state: Mapping[str, Tensor], text_encoder: str | Path | None, path: Path, declared: Mapping[str, Any]
) -> Conditioner:
    if text_encoder is None:
        if state:
            log.warning("%s: without text_encoder=FOLDER, which has the tokenizer, the model takes no prompt", path)
        return Conditioner()
    return Conditioner({"text": load_clip(state, Path(text_encoder), path, declared)})


def _check_rest(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses other tensors in the file that concern latents or noise, and warns of the remaining ones."""
    read = (compvis.UNET, compvis.VAE, compvis.TEXT, sdxl_file.TEXT, controlnet_config.COMPVIS, *_IGNORED)
    rest = [name for name in state if not name.startswith(read)]
    if telling := [name for name in rest if any(word in name.rsplit(".", 1)[-1].lower() for word in _SIGNIFICANT)]:
        raise UserError(f"{path} can't be represented here: it holds {', '.join(telling[:4])}, which isn't supported.")
    if rest:
        log.warning("%s: %d tensors have no counterpart here and are left out: %s, ...", path, len(rest), rest[0])


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in state if name.startswith(compvis.UNET)]
    if missing := [name for name in names if compvis.ema_name(name) not in state]:
        raise UserError(f"the checkpoint lacks averaged weights for {len(missing)} names: leave ema out.")
    return {name: state[compvis.ema_name(name)] for name in names}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
