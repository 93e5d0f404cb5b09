"""How files declare the shift and scale of latents for a denoiser: z' = (z - mean) / std per channel.

diffusers writes settings into the autoencoder's config, CompVis's trainer a tensor (`scale_factor`, possibly measured),
and other tools numbers among the weights or in a file's metadata. All are read; contradictory and impossible values are
refused.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import flag, number

log = logging.getLogger("ldm")
Whitening = tuple[list[float], list[float]]  # mean and std per channel
SD_FACTOR = 0.18215
_FACTORS, _SHIFTS = ("scale_factor", "scaling_factor"), ("shift_factor",)
_MEANS, _STDS = ("latents_mean", "latent_mean"), ("latents_std", "latent_std")
_MEASURED = "scale_by_std"
_SIGNIFICANT = re.compile(r"(latents?|vae|first_stage)_(.*_)?(scal|shift|mean|std)|scal(e|ing)_latents?")
NAMES = (*_FACTORS, *_SHIFTS, *_MEANS, *_STDS)  # names that a checkpoint may use for them


def of_config(config: Mapping[str, Any], where: str) -> Whitening:
    """From the config of a diffusers autoencoder, where the factor is 0.18215 by default."""
    factor = config.get("scaling_factor", SD_FACTOR)
    shift, mean, std = (config.get(name) for name in ("shift_factor", "latents_mean", "latents_std"))
    return _whitening(factor, shift, mean, std=std, channels=config.get("latent_channels", 4), where=where)


def collect(state: dict[str, Tensor], declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings `NAMES` of a checkpoint, from tensors, which are removed from `state`, and from `declared`.

    With `scale_by_std`, CompVis's trainer measures the factor in its first batch. Then the tensor is used, and if it is
    missing, `scale_by_std` is in the result.
    """
    places = [(path, canonical(name, value), value) for path, name, value in each_setting(declared)]
    if unread := [path for path, name, value in places if name is None]:
        raise UserError(f"{where} can't be represented here: it sets {', '.join(unread[:4])}, which isn't supported.")
    measured = any(name == _MEASURED and flag(value, f"{where}: {path}") for path, name, value in places)
    found: dict[str, Any] = {}
    for key in [key for key in NAMES if key in state]:
        found[key] = state.pop(key)
    for _, name, value in places:
        if name not in NAMES or (measured and name in _FACTORS):
            continue
        if name in found and not _same(found[name], value):
            raise UserError(
                f"{where} sets {name}={_shown(found[name])} but {_shown(value)} in another place: it is "
                "damaged, so download it again."
            )
        found.setdefault(name, value)
    return found | ({_MEASURED: True} if measured and not found.keys() & set(_FACTORS) else {})


def canonical(name: str, value: Any) -> str | None:
    """Which of `NAMES` a setting is, "" for none; None for a setting about latents that isn't supported."""
    plain = re.sub(r"^(modelspec_|vae_|autoencoder_|first_stage_)+", "", name)
    if name == "vae_scale_factor" and re.fullmatch(
        r"\d+(\.0)?", str(value)
    ):  # the ratio of an image's sides to the latents'
        return ""
    if plain in NAMES or plain == _MEASURED:
        return plain
    return None if _SIGNIFICANT.search(name) else ""


def of_checkpoint(
    declared: Mapping[str, Any], given: float | None, channels: int, where: str, usual: float = SD_FACTOR
) -> Whitening:
    """The whitening by a checkpoint's settings `NAMES`.

    `given` is the user's own factor, which overrides the file's, and `usual` is the factor for files without one.
    """
    if given is None and declared.get(_MEASURED):
        raise UserError(
            f"{where} sets scale_by_std, but the scale_factor measured with it isn't in the file: give scaling_factor."
        )
    factor, shift, mean, std = (_one(declared, names, where) for names in (_FACTORS, _SHIFTS, _MEANS, _STDS))
    if given is not None and factor is not None and not _same(factor, given):
        log.warning(
            "%s: scaling_factor=%g was given and is used instead of the file's own %s", where, given, _shown(factor)
        )
    if given is None and factor is None:
        given = 1.0 if mean is not None or std is not None else usual
    return _whitening(factor if given is None else given, shift, mean, std=std, channels=channels, where=where)


def per_channel(values: Any, channels: int, what: str) -> list[float]:
    """One finite number per channel."""
    values = values.flatten().tolist() if isinstance(values, Tensor) else values
    if not isinstance(values, (list, tuple)) or len(values) != channels:
        count = len(values) if isinstance(values, (list, tuple)) else "no list of"
        raise UserError(f"{what} has {count} numbers, where there are {channels} latent channels.")
    return [number(value, f"{what}[{i}]") for i, value in enumerate(values)]


def positive(values: list[float], what: str) -> list[float]:
    """The values, all above 0. Raises UserError, in which `what` names the values."""
    if bad := [value for value in values if not value > 0]:
        raise UserError(f"{what} is {bad[0]:g}, where a number above 0 belongs.")
    return values


def _whitening(factor: Any, shift: Any, mean: Any, std: Any, channels: int, where: str) -> Whitening:
    """The whitening: z' = (z - mean) factor / std with statistics per channel, z' = (z - shift) factor without."""
    scale = positive([_scalar(factor, f"{where}: scaling_factor")], f"{where}: scaling_factor")[0]
    offset = 0.0 if shift is None else _scalar(shift, f"{where}: shift_factor")
    if offset and mean is not None:
        raise UserError(f"{where} sets both a shift_factor and a latents_mean: remove the wrong one.")
    means = [offset] * channels if mean is None else per_channel(mean, channels, f"{where}: latents_mean")
    what = f"{where}: latents_std"
    stds = [1.0] * channels if std is None else positive(per_channel(std, channels, what), what)
    return means, [s / scale for s in stds]


def _one(declared: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """The value under any of several names. Raises UserError where two differ."""
    found = [name for name in names if name in declared]
    if len(found) > 1 and not _same(declared[found[0]], declared[found[1]]):
        both = " and ".join(f"{name}={_shown(declared[name])}" for name in found)
        raise UserError(f"{where} sets {both}: remove the wrong one.")
    return declared[found[0]] if found else None


def _same(a: Any, b: Any) -> bool:
    """Whether two numbers, or rows of numbers, are equal to the precision in which they are stored."""
    try:
        one, other = (torch.as_tensor(_plain(value), dtype=torch.float64).flatten() for value in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return _shown(a) == _shown(b)
    stored = [v.dtype for v in (a, b) if isinstance(v, Tensor) and v.is_floating_point()]
    rounding = max([1e-5, *(torch.finfo(dtype).eps for dtype in stored)])
    return one.shape == other.shape and torch.allclose(one, other, rtol=rounding, atol=0, equal_nan=True)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    values = value.flatten().tolist() if isinstance(value, Tensor) else value
    values = values if isinstance(values, (list, tuple)) else [values]
    return ", ".join(_rounded(v) for v in values[:16])


def _rounded(value: Any) -> str:
    try:
        return f"{float(value):.5g}"
    except (TypeError, ValueError):
        return str(value)[:40]


def _scalar(value: Any, what: str) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"{what} has the shape {tuple(value.shape)}, where one number belongs.")
        value = value.item()
    return number(value, what)
